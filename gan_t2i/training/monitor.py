"""Divergence checks at every tick: non-finite values, exploding outputs, D winning, mode collapse.

A failed run rolls back, and stops after too many rollbacks. A rollback restores the last healthy
state with lower learning rates. Everything here is a function of the metrics, which are the same in all processes, and of the states on disk.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gan_t2i.checkpoint import save_snapshot
from gan_t2i.core.distributed import from_first, is_first
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.runs import RunFolder
from gan_t2i.training.config import MonitorConfig
from gan_t2i.training.report import Report
from gan_t2i.training.session import Session
from gan_t2i.training.state import Progress, load_state, read_progress, save_state

log = logging.getLogger(__name__)

SIGNS = "Loss/signs/real_above_fake"
DIVERSITY = "Quality/diversity"
DISTANCE = "Loss/G/distance"
# The mean squared distance from black to white is 4, and D alone keeps G in that range. A small G may start a little outside it; at ten
# times as much nothing is left of what it learned.
LARGEST_DISTANCE = 40.0
SATURATED = 0.999  # mean of signs: 1 but for rounding. Below it D errs now and then, and G can learn.
MEANING = {SIGNS: "D wins every comparison of a real with a generated image", DIVERSITY: "the generated images are all alike"}
COMPARED = 16  # images, real and generated
ADVICE = "try lower learning rates (optimizer.g_lr, optimizer.d_lr) or more penalty (penalty.r1_gamma, penalty.r2_gamma)"


class Failure(NamedTuple):
    """A reason to roll back, as part of a sentence. `suspected` is True if it built up slowly: the newest state may have it too."""

    what: str
    suspected: bool


class Monitor:
    """Checks the metrics of each tick.

    Args:
        config: limits and patience.
        suspect_since: metrics that looked bad so far, and the nimg since when, from the state on disk.
    """

    def __init__(self, config: MonitorConfig, suspect_since: Mapping[str, int] | None = None) -> None:
        self.config = config
        self.suspect_since = dict(suspect_since or {})

    def check(self, nimg: int, metrics: Mapping[str, float]) -> Failure | None:
        """Return the failure at `nimg`; None while there is none, or not for long enough."""
        if bad := not_finite(metrics):
            return Failure(f"{', '.join(bad)} is not finite", suspected=False)
        if (distance := metrics.get(DISTANCE, 0.0)) > LARGEST_DISTANCE:
            return Failure(f"outputs have exploded: {DISTANCE} is {distance:.3g}, where black and white are 4 apart", suspected=False)
        signs, diversity = metrics.get(SIGNS), metrics.get(DIVERSITY)
        suspects = {
            SIGNS: signs is not None and signs >= SATURATED,
            DIVERSITY: diversity is not None and diversity < self.config.diversity,
        }
        self.suspect_since = {name: self.suspect_since.get(name, nimg) for name, bad in suspects.items() if bad}
        for name, since in self.suspect_since.items():
            if nimg - since >= self.config.patience_kimg * 1000:
                what = f"{MEANING[name]}: {name} is {metrics[name]:.3g}, and has been as bad since {since:,} images"
                return Failure(what, suspected=True)
        return None


def not_finite(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the metrics that are infinite or NaN."""
    return [name for name, value in metrics.items() if not math.isfinite(value)]


@torch.no_grad()
def diversity(session: Session) -> float:
    """Return the mean distance among images that G's average draws for some training captions, as a share of that among the real ones.

    Captions and z are the same at every tick, so that the values of a run compare.
    """
    batch = session.preview_batch(COMPARED)
    G = session.networks.G_ema
    z = torch.randn(COMPARED, G.z_width, generator=seeded_rng(session.config.seed, "diversity")).to(session.device)
    fake = G(z, session.cache.gather(batch.captions).to(session.device))
    return mean_distance(fake) / max(mean_distance(session.latents(batch.images)), 1e-6)


def mean_distance(images: Tensor) -> float:
    """Return the root mean squared difference of two images, averaged over all pairs of [N, C, R, R], N >= 2."""
    flat = images.flatten(1).float().cpu()
    return (torch.pdist(flat).mean() / flat.shape[1] ** 0.5).item()


def roll_back(session: Session, folder: RunFolder, report: Report, progress: Progress, failure: Failure) -> Progress:
    """Restore the last healthy state with lower learning rates from then on; returns where the run stands now.

    Raises `GanT2IError` with the failure where there is no state yet, or after too many rollbacks.
    """
    config = session.config.monitor
    stopped = f"training stopped at {progress.nimg:,} images: {failure.what}; "
    path = from_first(_last_healthy(folder, failure.suspected) if is_first() else None)
    if path is None:
        raise GanT2IError(f"{stopped}there is no snapshot yet; {ADVICE}")
    if progress.rollbacks >= config.rollbacks:
        again = f"it rolled back {progress.rollbacks} time{'s' * (progress.rollbacks > 1)}, to ever lower rates; " if progress.rollbacks else ""
        good = folder.snapshot(read_progress(path).nimg)
        kept = f"the last good snapshot is kept: {good}; " if good.is_file() else ""  # report.keep may have removed it
        raise GanT2IError(f"{stopped}{again}{kept}{ADVICE}")
    loaded = load_state(path, session.networks, {})  # fingerprints were checked when the run began
    session.step.moved()
    nimg, rollbacks = loaded.nimg, progress.rollbacks + 1
    back = Progress(nimg, rollbacks, {} if failure.suspected else loaded.suspect_since)  # a suspect gets its full patience again
    session.step.rate_scale = config.rate_factor**rollbacks
    message = (
        f"at {progress.nimg:,} images {failure.what}: rolling back to {nimg:,} images, with learning rates times {session.step.rate_scale:g} "
        f"(rollback {rollbacks} of {config.rollbacks})"
    )
    log.warning(message)
    if is_first():
        # at once, so that a run that is killed here does not count anew; the snapshot too, which may have been removed
        save_snapshot(folder.snapshot(nimg), session.networks.images, session.snapshot_info(nimg))
        save_state(folder.state, session.networks, back, session.fingerprints)
        for snapshot in folder.snapshots():
            if folder.snapshot(nimg).name < snapshot.name <= folder.snapshot(progress.nimg).name:
                snapshot.unlink()  # of failed networks
    report.rewind(nimg, message)
    return back


def _last_healthy(folder: RunFolder, suspected: bool) -> Path | None:
    """Return the newest state, or for a `suspected` failure the newest one from before the suspicion; None without any."""
    if not folder.state.is_file():
        return None
    before = suspected and read_progress(folder.state).suspect_since and folder.last_healthy.is_file()
    return folder.last_healthy if before else folder.state
