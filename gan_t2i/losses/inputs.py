"""Inputs of a training step and of its losses.

Legend: n images of a micro-batch, N of the whole batch, M captions, K negative captions an image, C channels, R resolution, Z latent width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gan_t2i.core.runtime import seeded_rng
from gan_t2i.models.base import Discriminator
from gan_t2i.models.text_head import TextCondition
from gan_t2i.ops.augment import AugmentConfig, random_changes
from gan_t2i.text.batch import TextBatch


@dataclass(frozen=True)
class StepNoise:
    """Random numbers of n rows of a batch, a function of (seed, nimg, row) alone. Index it with rows.

    They are drawn for all N rows at once, so that micro-batches and processes add up to the whole batch.
    """

    z: Tensor  # [n, k, Z], k candidates for each image
    real: Tensor  # [n, 6], changes of the real images
    fake: Tensor  # [n, 6], changes of the generated ones
    background: Tensor  # [n, 3] in [0, 1), colour below a row's images where they are transparent

    @classmethod
    def draw(cls, seed: int, nimg: int, batch: int, z_width: int, augment: AugmentConfig, candidates: int = 1) -> "StepNoise":
        """Draw the noise of a batch of `batch` rows."""
        rng = seeded_rng(seed, "step", nimg)
        return cls(
            z=torch.randn(batch, candidates, z_width, generator=rng),
            real=random_changes(batch, augment, rng),
            fake=random_changes(batch, augment, rng),
            background=torch.rand(batch, 3, generator=seeded_rng(seed, "background", nimg)),
        )

    def __getitem__(self, rows: Tensor) -> "StepNoise":
        return StepNoise(self.z[rows], self.real[rows], self.fake[rows], self.background[rows])


@dataclass(frozen=True)
class Draws:
    """Source of further numbers of n rows of a batch on the CPU, for penalties and terms that ask for them.

    A generator of its own for each row: a process draws for its share alone.
    """

    seed: int
    nimg: int  # images shown before the step
    rows: Tensor  # [n], positions in the whole batch
    captions: Tensor  # [n], ids of their own captions
    static: bool = False
    """True if what is drawn must have the same shape in every step."""

    def normal(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """Return normal noise [2, count, *shape] for the real and the generated images of the first `count` rows."""
        return torch.stack([torch.randn(2, *shape, generator=rng) for rng in self._row_rngs("noise", count)], dim=1)

    def uneven(self, largest_std: float, shape: tuple[int, ...]) -> Tensor:
        """Return normal noise [n, *shape] whose standard deviation differs by row, uniform from 0 to `largest_std`."""
        rngs = self._row_rngs("uneven", len(self.rows))
        return torch.stack([largest_std * torch.rand((), generator=rng) * torch.randn(shape, generator=rng) for rng in rngs])

    def _row_rngs(self, name: str, count: int) -> list[torch.Generator]:
        return [seeded_rng(self.seed, name, self.nimg, row) for row in self.rows[:count].tolist()]


@dataclass(frozen=True)
class StepInputs:
    """Everything that changes from step to step, for a micro-batch of n images: tensors alone, in shapes that data do not decide.

    Images and captions of a set that lies on the device are given by their places in it.
    """

    images: Tensor  # uint8 [n, C, R, R], or float16 latents, or int64 [n]
    text: TextBatch | Tensor  # M captions, or int64 [M]
    caption_index: Tensor  # [n, 1 + K], index into `text`: column 0 the own caption, the rest negatives
    negative_mask: Tensor  # [n, K] bool, False where a negative is one of the image's own captions
    negative_weights: Tensor  # [n], weight of each image in the mismatch term
    noise: StepNoise  # of n rows
    searched: Tensor  # int64 [m], images whose z is chosen among the candidates; see `nearest_z`
    drawn: Mapping[str, Tensor] = field(default_factory=dict)
    """Noise, weights and tokens that the penalty and the terms ask for, by their names."""


@dataclass(frozen=True)
class MicroBatch(StepInputs):
    """n images of a batch with the captions that they are paired with, on the device."""

    text: TextBatch

    @property
    def own_text(self) -> TextBatch:
        """Each image's own caption, n of them."""
        return self.text[self.caption_index[:, 0]]


@dataclass(frozen=True)
class Scores:
    """Real and generated images of a micro-batch with their logits."""

    real: Tensor  # [n, C, R, R] in [-1, 1]
    fake: Tensor  # [n, C, R, R], a leaf: its gradient is handed on to G
    real_aug: Tensor  # [n, 3, R, R], as D sees them
    fake_aug: Tensor
    conditions: TextCondition  # the M captions, as D reads them
    real_logits: Tensor  # [n, 1 + K], for the own caption and the negatives
    fake_logits: Tensor  # [n]

    @property
    def distance(self) -> Tensor:
        """Mean squared distance between generated images and the real ones of their captions, a scalar."""
        return (self.fake - self.real).square().mean()


def pair_logits(D: Discriminator, features: Tensor, conditions: TextCondition, caption_index: Tensor) -> Tensor:
    """Return logits [n, k] of n images paired with the k of `conditions` that each row of `caption_index` [n, k] names."""
    logits: Tensor = D.head(features, conditions[caption_index.flatten()])  # [n k]
    return logits.reshape(caption_index.shape)


def negative_weights(negative_mask: Tensor) -> Tensor:
    """Return weights [N] with a mean of 1 for images that have a true negative in `negative_mask` [N, K], and 0 for the others."""
    has_negative = negative_mask.any(dim=1)
    return has_negative * (len(has_negative) / has_negative.sum().clamp(min=1))
