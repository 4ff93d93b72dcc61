"""Autoencoder `pixels`: none. G draws pixels and D judges them."""

from torch import Tensor

from gan_t2i.core.config import StrictConfig
from gan_t2i.models.autoencoders.base import Autoencoder
from gan_t2i.registry import register


@register("autoencoder", "pixels")
class PixelAutoencoder(Autoencoder):
    """The identity."""

    class Config(StrictConfig):
        """No settings."""

    is_identity = True
    factor = 1

    def __init__(self, config: Config, *, resolution: int, channels: int = 3) -> None:
        super().__init__()
        self.latent_channels = channels

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents
