"""Base classes of registered networks: what training and sampling rely on. N batch, C image channels, R resolution, Z latent width."""

from torch import Tensor, nn

from gan_t2i.models.text_head import TextCondition, TextHead
from gan_t2i.text.batch import TextBatch


class Generator(nn.Module):
    """Base of every class registered as "generator".

    The constructor takes (config, *, resolution, text_width, max_tokens, channels=3). `channels` is 4 for images with alpha: alpha is the
    fourth channel, and colours are premultiplied by it.

    Args:
        config: settings of the class, its `Config`.
        resolution: R, a power of two from 16 to 512.
        text_width: E, width of the frozen encoder.
        max_tokens: largest number of tokens in a caption.
    """

    resolution: int
    z_width: int
    text_head: TextHead
    mapping: nn.Module
    """Maps z and the sentence vector to the style w."""
    layout: nn.Module | None
    """Layout predictor, pretrained on real pairs before the run and frozen in it: maps a `TextBatch` to log-probabilities [N, L, S * S]."""

    def __init__(self) -> None:
        super().__init__()
        self.layout = None

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        """Map z [N, Z] and N encoded captions to images [N, C, R, R] float32, about [-1, 1].

        `truncation_psi` below 1 trades variety for typicality: it shrinks the z path alone and leaves the prompt as it is.
        In a CUDA graph and in an export, it is a tensor [], on which nothing can branch.
        """
        raise TypeError(f"{type(self).__name__} has no forward")


class Discriminator(nn.Module):
    """Base of every class registered as "discriminator".

    The constructor takes the arguments of a `Generator`, with input_channels=3 in place of `channels`: those of latents, or 3. `trunk` runs
    once per image, `text_head` once per caption. `head` takes the features of n images and k captions for each, grouped by image, and returns
    n * k logits. The format of the features is up to the class. Logits of different pairs are independent.
    """

    resolution: int
    text_head: TextHead
    trunk: nn.Module
    head: nn.Module

    def forward(self, images: Tensor, text: TextCondition) -> Tensor:
        """Map images [N, 3, R, R] in [-1, 1] and the `text_head`'s output for N captions to logits [N] float32, positive for real and
        matching pairs."""
        logits: Tensor = self.head(self.trunk(images), text)
        return logits
