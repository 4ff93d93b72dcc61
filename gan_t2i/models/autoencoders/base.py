"""Base class of registered autoencoders. N batch, C image channels, K latent channels, R resolution, f factor."""

from typing import ClassVar

from torch import Tensor, nn

SMALLEST_SIDE = 8  # of the latents: the networks read them at 8 x 8 at least


class Autoencoder(nn.Module):
    """Base of every class registered as "autoencoder": the space that G draws in and D judges in.

    The constructor takes (config, *, resolution, channels=3). After its training the network is frozen. A snapshot holds all of it: the decoder
    to draw with, and the encoder for whoever trains on.
    """

    factor: int
    """f, side in pixels of the square that one latent stands for."""
    latent_channels: int
    """K; the images' own channels where there is no latent space."""
    decoder: nn.Module
    """Maps latents [N, K, R / f, R / f] to images [N, C, R, R] float32, about in [-1, 1]."""
    is_identity: ClassVar[bool] = False
    """True if the latents are the pixels."""

    def encode(self, images: Tensor) -> Tensor:
        """Map images [N, C, R, R] in [-1, 1] to latents [N, K, R / f, R / f] float32, standardised for each channel."""
        raise TypeError(f"{type(self).__name__} has no encode")

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents [N, K, R / f, R / f] to images [N, C, R, R] float32, about in [-1, 1]."""
        images: Tensor = self.decoder(latents)
        return images

    def rebuild(self, images: Tensor) -> Tensor:
        """Encode images [N, C, R, R] and decode them."""
        return self.decode(self.encode(images))
