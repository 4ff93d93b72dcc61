"""What is drawn at random for a batch: for all of its rows at once, so that the parts of it, and the processes, add up to the whole."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gan_t2i.core.runtime import seeded_rng
from gan_t2i.ops.augment import draw_changes
from gan_t2i.training.config import TrainConfig


@dataclass(frozen=True)
class StepNoise:
    """The draws of n rows of a batch. Index it with rows."""

    z: Tensor  # [n, Z]
    real: Tensor  # [n, 6], how real pictures are augmented
    fake: Tensor  # [n, 6], how drawn ones are
    background: Tensor  # [n, 3] in [0, 1), the colour below a row's real and drawn picture where they are transparent
    rows: Tensor  # [n], places in the whole batch
    key: tuple[int, int]  # (seed, nimg)

    def __getitem__(self, rows: Tensor) -> "StepNoise":
        names = ("z", "real", "fake", "background", "rows")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @property
    def nimg(self) -> int:
        """Pictures shown before the step."""
        return self.key[1]

    def noise(self, count: int, resolution: int) -> Tensor:
        """Normal noise [2, count, 3, R, R] for the first rows' real and drawn pictures."""
        shape = (2, 3, resolution, resolution)
        return torch.stack([torch.randn(shape, generator=generator) for generator in self._generators("noise", count)], dim=1)

    def uneven_noise(self, most: float, resolution: int) -> Tensor:
        """Normal noise [n, 3, R, R], times a number from 0 to `most` that is another for each row."""
        shape = (3, resolution, resolution)
        generators = self._generators("uneven", len(self.rows))
        return torch.stack([most * torch.rand((), generator=one) * torch.randn(shape, generator=one) for one in generators])

    def _generators(self, name: str, count: int) -> list[torch.Generator]:
        """One for each of the first `count` rows: noise for a whole batch, of which a process needs its share alone, would be large."""
        seed, nimg = self.key
        return [seeded_rng(seed, name, nimg, row) for row in self.rows[:count].tolist()]


def draw(config: TrainConfig, z_width: int, nimg: int) -> StepNoise:
    """Everything that the step after `nimg` pictures draws, a function of (seed, nimg) alone."""
    generator = seeded_rng(config.seed, "step", nimg)
    return StepNoise(
        z=torch.randn(config.batch, z_width, generator=generator),
        real=draw_changes(config.batch, config.augment, generator),
        fake=draw_changes(config.batch, config.augment, generator),
        background=torch.rand(config.batch, 3, generator=seeded_rng(config.seed, "background", nimg)),
        rows=torch.arange(config.batch),
        key=(config.seed, nimg),
    )
