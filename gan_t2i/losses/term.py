"""Auxiliary losses as registered terms: kind ``loss_term``, one module each in `losses/terms/`.

A term holds its settings, prepares whatever it needs before the run, and adds a few lines to G's or D's loss. To add one, write a module there;
`training/` builds, prepares and sums all registered terms whose weight is above 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from gan_t2i.core.config import NonNegative, StrictConfig
from gan_t2i.losses.inputs import Draws, MicroBatch, Scores
from gan_t2i.models.base import Generator
from gan_t2i.pretraining.loop import RealPairs

KIND = "loss_term"


@dataclass(frozen=True)
class RunParts(RealPairs):
    """The parts of a run that a term may prepare itself with: real pairs, both copies of G, and the adversarial loss."""

    G: Generator
    G_ema: Generator
    adversarial: str


class TermConfig(StrictConfig):
    """Settings that every term has."""

    weight: NonNegative = 0.0
    """Factor of the term in the loss; 0 switches it off."""


class LossTerm:
    """Base of the auxiliary losses. A subclass overrides what it needs; everything here does nothing."""

    Config: ClassVar[type[StrictConfig]] = TermConfig
    config: Any

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def active(self) -> bool:
        """True if the term takes part in the run."""
        return bool(self.config.weight > 0)

    def check(self, run: Any) -> None:
        """Raise ValueError where the run's config (a `TrainConfig`) does not allow this term."""

    def prepare(self, run: RunParts, *, pretrained: bool = True) -> Mapping[str, nn.Module]:
        """Get ready for the run; returns frozen networks that the training state must keep, by name.

        With `pretrained` False the run is only measured, so pretraining may be left out. Raises `GanT2IError` where the data do not suffice.
        """
        return {}

    @property
    def pretraining_kimg(self) -> float:
        """Length of the longest stage of pretraining, in thousands of images; 0 without any."""
        return 0.0

    def pretrain(self, run: RunParts, share: float) -> None:
        """Do that `share` of the pretraining, for measuring its speed; the result is thrown away."""

    def draw(self, draws: Draws) -> Mapping[str, Tensor]:
        """Return what changes from step to step, made on the CPU, by names of the term's own: the losses find it in `batch.drawn`.

        The losses themselves run on the device without a look at a number there, so that a GPU can replay them.
        """
        return {}

    def generator_loss(self, batch: MicroBatch, scores: Scores) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Return the weighted term of G's loss, a scalar, and metrics; None where there is none."""
        return None

    def discriminator_loss(self, batch: MicroBatch, scores: Scores) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Return the weighted term of D's loss, a scalar, and metrics; None where there is none."""
        return None
