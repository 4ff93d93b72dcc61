"""What training and sampling ask of every registered network. N batch, C channels of a picture, R resolution, Z latent width."""

from torch import Tensor, nn

from gan_t2i.models.text_head import TextCondition, TextHead
from gan_t2i.text.batch import TextBatch


class Generator(nn.Module):
    """A network registered as "generator"; its constructor takes (config, *, resolution, text_width, max_tokens, channels=3).

    `channels` is 4 for pictures with transparency: alpha is the fourth, and colours are multiplied by it.
    """

    resolution: int
    z_width: int

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        """z [N, Z] and N encoded captions -> pictures [N, C, R, R] float32, about [-1, 1].

        `truncation_psi` below 1 trades variety for typicality by shrinking the z path alone; the prompt is left as it is.
        """
        raise TypeError(f"{type(self).__name__} has no forward")


class Discriminator(nn.Module):
    """A network registered as "discriminator"; its constructor takes (config, *, resolution, text_width, max_tokens).

    `trunk` runs once a picture, `text_head` once a caption, and `head` takes the features of n pictures and k captions for each, those of a
    picture in a row, to n * k logits; logits of different pairs are independent.
    """

    resolution: int
    text_head: TextHead
    trunk: nn.Module
    head: nn.Module

    def forward(self, images: Tensor, text: TextCondition) -> Tensor:
        """images [N, 3, R, R] in [-1, 1] and what `text_head` says of N captions -> logits [N] float32, positive for real and matching."""
        return self.head(self.trunk(images), text)
