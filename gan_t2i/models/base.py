"""What training and sampling ask of every registered network. N batch, C channels of a picture, R resolution, Z latent width."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from gan_t2i.core.config import StrictConfig
from gan_t2i.models.layout import LayoutPredictor
from gan_t2i.models.text_head import TextCondition, TextHead
from gan_t2i.text.batch import TextBatch


class Generator(nn.Module):
    """A network registered as "generator"; its constructor takes (config, *, resolution, text_width, max_tokens, channels=3).

    `channels` is 4 for pictures with transparency: alpha is the fourth, and colours are multiplied by it.
    """

    resolution: int
    z_width: int
    text_head: TextHead
    layout: LayoutPredictor | None
    """Taught before the run, and never trained in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layout = None

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        """z [N, Z] and N encoded captions -> pictures [N, C, R, R] float32, about [-1, 1].

        `truncation_psi` below 1 trades variety for typicality by shrinking the z path alone; the prompt is left as it is.
        """
        raise TypeError(f"{type(self).__name__} has no forward")


class Discriminator(nn.Module):
    """A network registered as "discriminator"; its constructor takes (config, *, resolution, text_width, max_tokens).

    `trunk` runs once a picture, `text_head` once a caption, and `head` takes the features of n pictures and k captions for each, those of a
    picture in a row, to n * k logits, or to [n * k, H] where H heads judge by themselves: each has a loss of its own then, and their mean is
    the verdict. Features are the class's own business. Logits of different pairs are independent.
    """

    resolution: int
    text_head: TextHead
    trunk: nn.Module
    head: nn.Module
    pretrained: Mapping[str, str] = {}
    """What frozen weights it builds on -> their sha256; a run goes on only with the same."""
    run_settings: ClassVar[Mapping[str, Any]] = {}
    """Settings of the run that this class needs, by dotted key: filled in where the user gives none; another value is refused, except that a
    number above 0 may be any other."""

    @classmethod
    def find_weights(cls, config: StrictConfig) -> None:
        """Find the pretrained weights that `config` asks for and say where; raises GanT2IError where they are not to be had."""

    def forward(self, images: Tensor, text: TextCondition) -> Tensor:
        """images [N, 3, R, R] in [-1, 1] and what `text_head` says of N captions -> logits [N] float32, positive for real and matching."""
        return self.head(self.trunk(images), text).reshape(len(images), -1).mean(dim=1)
