"""Discriminator `projected`: small heads on the features of a frozen pretrained network, one per scale.

Projected GAN (Sauer et al. 2021, arXiv 2111.01007), conditioned on text as in StyleGAN-T (arXiv 2301.09515): random fixed convolutions mix
the channels and then the scales of the features, from coarse to fine, so that D cannot ignore any part of them. The head of each scale uses
projection of the sentence and, at the two coarsest scales, word alignment.
It needs the hinge loss and no penalty (`run_settings`). The gradient of such features with respect to a pixel is nearly noise, and only its
coarse part leads to real images: alone, G learned nothing without a blur over most of the run, which is gone (configs/studies/projected).
n images, k captions each, H heads, C channels, D width of the text head.
"""

import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.core.errors import UsageError
from gan_t2i.models import features
from gan_t2i.models.base import Discriminator
from gan_t2i.models.projection import projection_logits
from gan_t2i.models.text_head import TextCondition, TextHead, TextHeadConfig
from gan_t2i.models.word_alignment import WordAlignment
from gan_t2i.ops.layers import activate, conv, linear
from gan_t2i.registry import register

log = logging.getLogger(__name__)

# Side to which the heads downsample their feature maps.
HEAD_RESOLUTION = 4
# Channels per group of a group normalisation.
GROUP = 8


class ProjectedTrunk(nn.Module):
    """Maps images of any size to mixed feature maps, fine to coarse. Nothing in it is trained; the mixing is saved, the backbone is not.

    Args:
        backbone: from `features.build_features`.
        resolution: side to which images are resized for the backbone.
        channels: C of the mixed maps.
    """

    def __init__(self, backbone: features.Frozen, resolution: int, channels: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.backbone = backbone
        shapes = backbone.network.shapes
        self.sides = [side for _, side in shapes]
        self.mix_channels = nn.ModuleList(conv(width, channels, 1) for width, _ in shapes)
        self.mix_scales = nn.ModuleList(conv(channels, channels, 3) for _ in shapes)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [n, 3, R, R] in [-1, 1] -> one map [n, C, side, side] for each of `sides`."""
        size = (self.resolution, self.resolution)
        x = F.interpolate(images, size=size, mode="bilinear", antialias=images.shape[-1] > self.resolution)
        maps: list[Tensor] = []
        for raw, channels, scales in reversed(list(zip(self.backbone(x), self.mix_channels, self.mix_scales, strict=True))):
            mixed = channels(raw)
            if maps:
                mixed = (mixed + F.interpolate(maps[-1], size=mixed.shape[2:], mode="bilinear")) * math.sqrt(0.5)
            maps.append(scales(mixed))
        return tuple(reversed(maps))


class ScaleHead(nn.Module):
    """Maps one feature map and captions to one logit per caption.

    Args:
        inputs: channels of the feature map.
        side: side of the feature map.
        channels: channels of the head's own maps.
        text: settings of the text head.
        with_words: whether the alignment score of the words is added.
    """

    def __init__(self, inputs: int, side: int, channels: int, text: TextHeadConfig, with_words: bool) -> None:
        super().__init__()
        self.words = WordAlignment(inputs, side**2, text.width, text.heads) if with_words else None
        self.blocks = nn.Sequential()
        width = inputs
        while side > HEAD_RESOLUTION:
            halve = spectral_norm(nn.Conv2d(width, channels, 4, stride=2, padding=1))
            self.blocks.extend([halve, nn.GroupNorm(channels // GROUP, channels), nn.LeakyReLU(0.2)])
            width, side = channels, side // 2
        mix = spectral_norm(nn.Conv2d(width, channels, 3, padding=1))
        self.blocks.extend([mix, nn.GroupNorm(channels // GROUP, channels), nn.LeakyReLU(0.2)])
        self.features = spectral_norm(linear(channels * side**2, text.width))
        self.realism = spectral_norm(linear(text.width, 1))
        self.match = spectral_norm(linear(text.width, text.width))

    def forward(self, x: Tensor, text: TextCondition) -> Tensor:
        """x [n, C, side, side] and n * k captions, grouped by image -> logits [n * k] float32."""
        h = activate(self.features(self.blocks(x).flatten(1)))  # [n, D]
        logits = projection_logits(self.match(h), self.realism(h), text.sentence)
        return logits if self.words is None else logits + self.words(x, text)


class ProjectedHead(nn.Module):
    """One `ScaleHead` per feature map."""

    def __init__(self, sides: list[int], inputs: int, channels: int, text: TextHeadConfig) -> None:
        super().__init__()
        deep = len(sides) - 2
        self.scales = nn.ModuleList(ScaleHead(inputs, side, channels, text, number >= deep) for number, side in enumerate(sides))

    def forward(self, maps: tuple[Tensor, ...], text: TextCondition) -> Tensor:
        """H feature maps of n images and n * k captions, grouped by image -> logits [n * k, H] float32."""
        return torch.stack([head(x, text) for head, x in zip(self.scales, maps, strict=True)], dim=1)


@register("discriminator", "projected")
class ProjectedDiscriminator(Discriminator):
    """Maps images and encoded captions to logits, one per scale.

    Raises `GanT2IError` where the backbone's weights are unavailable or do not fit it.
    """

    class Config(StrictConfig):
        """Settings of the discriminator."""

        backbone: str = features.DEFAULT_BACKBONE
        """A timm model that returns feature maps."""
        weights: str | None = None
        """A local .safetensors, .pt or .pth file with the backbone's weights. None takes the installed package (default backbone only), else
        timm's weights from the hub."""
        feature_resolution: Annotated[int, Field(ge=32, multiple_of=32)] = 128
        """Side to which images are resized for the backbone."""
        channels: Count = 128
        """Channels of the mixed feature maps."""
        head_channels: Annotated[int, Field(ge=GROUP, multiple_of=GROUP)] = 64
        """Channels of the heads' own maps."""
        text_head: TextHeadConfig = TextHeadConfig()

    run_settings: ClassVar[Mapping[str, Any]] = {"loss": "hinge", "penalty.r1_gamma": 0.0, "penalty.r2_gamma": 0.0}

    def __init__(self, config: Config, *, resolution: int, text_width: int, max_tokens: int, input_channels: int = 3) -> None:
        super().__init__()
        if input_channels != 3:
            raise UsageError('discriminator projected judges pixels: train in pixels with --set "autoencoder={name: pixels}"')
        self.resolution = resolution
        self.text_head = TextHead(config.text_head, text_width=text_width, max_tokens=max_tokens)
        found = features.resolve(config.backbone, config.weights)
        self.pretrained = {"backbone of the discriminator": found.sha256}
        backbone = features.build_features(config.backbone, found, config.feature_resolution)
        self.trunk = ProjectedTrunk(backbone, config.feature_resolution, config.channels)
        self.head = ProjectedHead(self.trunk.sides, config.channels, config.head_channels, config.text_head)

    @classmethod
    def find_weights(cls, config: StrictConfig) -> None:
        assert isinstance(config, cls.Config)
        log.info(f"features of the discriminator: {features.resolve(config.backbone, config.weights).source}")
