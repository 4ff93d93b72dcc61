"""Base classes of registered autoencoders. N batch, C image channels, K latent channels, R resolution, f factor."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gan_t2i.core.config import Count, NonNegative, Positive, StrictConfig

LEARNING_RATE = 2e-3
SMALLEST_SIDE = 8  # of the latents: the networks read them at 8 x 8 at least


class TrainingSettings(StrictConfig):
    """Base of the settings of an autoencoder that is trained on the run's own pictures, before the run."""

    kimg: Positive = 30.0
    """Length of its training, in thousands of real images."""
    batch: Count = 16
    learning_rate: Positive | None = None
    """Highest learning rate; None is 2e-3, and less for a network that is too wide for it."""
    perceptual: NonNegative = 0.0
    """Weight of the distance in pretrained features (`gan-t2i[features]`), for photographs; 0 needs no such features."""
    noise: NonNegative = 0.1
    """Largest standard deviation of the noise on the latents in training, so that the decoder puts up with what G draws."""

    @property
    def rate(self) -> float:
        """Highest learning rate."""
        return self.learning_rate or LEARNING_RATE


class Autoencoder(nn.Module):
    """Base of every class registered as "autoencoder": the space that G draws in and D judges in.

    The constructor takes (config, *, resolution, channels=3). The network is trained or loaded before a run, and frozen in it. A snapshot holds
    all of it: the decoder to draw with, and the encoder for whoever trains on.
    """

    is_identity: ClassVar[bool] = False
    """True if the latents are the pixels."""
    factor: int
    """f, side in pixels of the square that one latent stands for."""
    latent_channels: int
    """K; the images' own channels where the latents are the pixels."""

    @property
    def own_params(self) -> Mapping[str, Any]:
        """Settings that a snapshot needs beside the user's, to build the network without any other file."""
        return {}

    def encode(self, images: Tensor) -> Tensor:
        """Map images [N, C, R, R] in [-1, 1] to latents [N, K, R / f, R / f] float32, standardised for each channel."""
        raise TypeError(f"{type(self).__name__} has no encode")

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents [N, K, R / f, R / f] to images [N, C, R, R] float32, about in [-1, 1]."""
        raise TypeError(f"{type(self).__name__} has no decode")

    def rebuild(self, images: Tensor) -> Tensor:
        """Encode images [N, C, R, R] and decode them."""
        return self.decode(self.encode(images))


class LatentAutoencoder(Autoencoder):
    """An autoencoder whose latents are standardised by constants, measured on training pictures before the run.

    A subclass defines `to_latents` and `to_images`, which know nothing of the constants.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, factor: int, latent_channels: int) -> None:
        super().__init__()
        self.factor, self.latent_channels = factor, latent_channels
        self.register_buffer("mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(latent_channels, 1, 1))

    def to_latents(self, images: Tensor) -> Tensor:
        """Map images [N, C, R, R] to latents [N, K, R / f, R / f] of any mean and scale."""
        raise TypeError(f"{type(self).__name__} has no to_latents")

    def to_images(self, latents: Tensor) -> Tensor:
        """Map latents of the same mean and scale to images [N, C, R, R]."""
        raise TypeError(f"{type(self).__name__} has no to_images")

    def encode(self, images: Tensor) -> Tensor:
        return (self.to_latents(images).float() - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        return self.to_images(latents * self.std + self.mean).float()
