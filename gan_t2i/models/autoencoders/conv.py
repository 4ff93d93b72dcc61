"""Autoencoder `conv`: a small convolutional network, trained on the pictures of a run. N batch, C image channels, K latent channels.

It has no normalisation and no attention, so that a latent depends on the pixels around it alone. Its outermost step is a pixel unshuffle
(Shi et al. 2016, arXiv 1609.05158) by half of the factor: a latent costs about the same at every factor.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.config import Count
from gan_t2i.models.autoencoders.base import LEARNING_RATE, LatentAutoencoder, TrainingSettings
from gan_t2i.registry import register

TRIED_WIDTH = 48  # that `LEARNING_RATE` was tried with


class ConvConfig(TrainingSettings):
    """Settings of the autoencoder `conv`."""

    factor: Literal[2, 4, 8, 16] = 4
    """Side in pixels of the square that one latent stands for."""
    latent_channels: Count = 8
    """Numbers in a latent."""
    width: Count = 48
    """Channels at twice the latents' side; at their own side there are twice as many."""

    @property
    def rate(self) -> float:
        """Highest learning rate; from 48 channels on it falls with the square of the width, as wide networks ran away."""
        return self.learning_rate or LEARNING_RATE * min(1.0, (TRIED_WIDTH / self.width) ** 2)


class ResidualConv(nn.Module):
    """Computes x plus two 3x3 convolutions of it, the second of which is zero at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv1.weight)
        nn.init.zeros_(self.conv1.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, channels, H, W]."""
        return x + self.conv1(F.leaky_relu(self.conv0(F.leaky_relu(x, 0.2)), 0.2))


class Encoder(nn.Sequential):
    """Maps images [N, C, R, R] to latents [N, K, R / f, R / f], not yet standardised."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        narrow, wide, outer = config.width, 2 * config.width, config.factor // 2
        super().__init__(
            nn.PixelUnshuffle(outer),
            nn.Conv2d(channels * outer**2, narrow, 3, padding=1),
            ResidualConv(narrow),
            nn.Conv2d(narrow, wide, 4, stride=2, padding=1),
            ResidualConv(wide),
            nn.LeakyReLU(0.2),
            nn.Conv2d(wide, config.latent_channels, 1),
        )


class Decoder(nn.Sequential):
    """Maps latents [N, K, S, S], not standardised, to images [N, C, S f, S f]."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        narrow, wide, outer = config.width, 2 * config.width, config.factor // 2
        super().__init__(
            nn.Conv2d(config.latent_channels, wide, 3, padding=1),
            ResidualConv(wide),
            ResidualConv(wide),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(wide, narrow, 3, padding=1),
            ResidualConv(narrow),
            ResidualConv(narrow),
            nn.LeakyReLU(0.2),
            nn.Conv2d(narrow, channels * outer**2, 3, padding=1),
            nn.PixelShuffle(outer),
        )


@register("autoencoder", "conv")
class ConvAutoencoder(LatentAutoencoder):
    """Maps images to latents and back."""

    Config = ConvConfig

    def __init__(self, config: ConvConfig, *, resolution: int, channels: int = 3) -> None:
        super().__init__(config.factor, config.latent_channels)
        self.encoder, self.decoder = Encoder(config, channels), Decoder(config, channels)

    def to_latents(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def to_images(self, latents: Tensor) -> Tensor:
        return self.decoder(latents.contiguous(memory_format=torch.channels_last))
