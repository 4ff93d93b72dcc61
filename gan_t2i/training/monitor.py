"""Whether a run goes well, from the numbers of each tick: what is finite, whether pixels have run away, whether D has won, whether G draws
one picture over and over.

A run that goes wrong returns to its last good state with lower learning rates, a few times, and then stops. Everything here is a function
of the numbers, which are the same in all processes, and of what the state on disk says.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gan_t2i.core.images import from_uint8
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.training.config import MonitorConfig
from gan_t2i.training.session import Session

SIGNS = "Loss/signs/real_above_fake"
DIVERSITY = "Quality/diversity"
DISTANCE = "Loss/G/distance"
# The mean squared distance from black to white is 4; nothing holds G to that range but D. A small G may begin a little beyond it; once it is
# off by ten times as much it has nothing left of what it learned.
FARTHEST = 40.0
SATURATED = 0.999  # of a mean of signs: 1 but for rounding. Below, D takes a drawn picture for the real one now and then, and G can learn.
MEANING = {SIGNS: "D tells every drawn picture from a real one", DIVERSITY: "the drawn pictures are all alike"}
COMPARED = 16  # pictures, real and drawn
ADVICE = "try lower learning rates (optimizer.g_lr, optimizer.d_lr) or more penalty (penalty.r1_gamma, penalty.r2_gamma)"


class Wrong(NamedTuple):
    """What went wrong, for a sentence, and whether it was long in coming: then the newest state on disk may have it too."""

    what: str
    suspected: bool


class Monitor:
    """Looks at the numbers of each tick.

    Args:
        config: what to look for, and for how long to wait.
        suspect_since: what was found wrong up to here, and the nimg since when, as the state on disk has it.
    """

    def __init__(self, config: MonitorConfig, suspect_since: Mapping[str, int] | None = None) -> None:
        self.config = config
        self.suspect_since = dict(suspect_since or {})

    def look(self, nimg: int, numbers: Mapping[str, float]) -> Wrong | None:
        """What is wrong at `nimg`; None while there is nothing, or not for long enough."""
        if bad := not_finite(numbers):
            return Wrong(f"{', '.join(bad)} is not finite", suspected=False)
        if (distance := numbers.get(DISTANCE, 0.0)) > FARTHEST:
            return Wrong(f"pixels have run away: {DISTANCE} is {distance:.3g}, where black and white are 4 apart", suspected=False)
        signs, diversity = numbers.get(SIGNS), numbers.get(DIVERSITY)
        doubts = {
            SIGNS: signs is not None and signs >= SATURATED,
            DIVERSITY: diversity is not None and diversity < self.config.diversity,
        }
        self.suspect_since = {name: self.suspect_since.get(name, nimg) for name, there in doubts.items() if there}
        for name, since in self.suspect_since.items():
            if nimg - since >= self.config.patience_kimg * 1000:
                what = f"{MEANING[name]}: {name} is {numbers[name]:.3g}, and has been as bad since {since:,} images"
                return Wrong(what, suspected=True)
        return None


def not_finite(numbers: Mapping[str, float]) -> list[str]:
    """The names of the numbers that are infinite or none."""
    return [name for name, value in numbers.items() if not math.isfinite(value)]


@torch.no_grad()
def diversity(session: Session) -> float:
    """How much the pictures that G's average draws for some training captions differ from each other, as a share of what the real ones do.

    The same captions and z at every tick, so that the numbers of a run compare.
    """
    batch = session.preview_batch(COMPARED)
    G = session.networks.G_ema
    z = torch.randn(COMPARED, G.z_width, generator=seeded_rng(session.config.seed, "diversity")).to(session.device)
    drawn = G(z, session.cache.gather(batch.captions).to(session.device))
    return mean_distance(drawn) / max(mean_distance(from_uint8(batch.images)), 1e-6)


def mean_distance(pictures: Tensor) -> float:
    """Mean over all pairs of the root of the mean squared difference of two pictures; [N, C, R, R], N >= 2."""
    flat = pictures.flatten(1).float().cpu()
    return (torch.pdist(flat).mean() / flat.shape[1] ** 0.5).item()
