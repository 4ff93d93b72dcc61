"""Discriminator `plain`: residual blocks, one linear layer over the whole map, and a projection of the sentence, for latents.

The caption joins in the last product alone, so further captions of an image cost next to nothing. N batch, C channels, D width of the text
head.
"""

import torch
from torch import Tensor, nn

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.models.base import Discriminator
from gan_t2i.models.projection import ProjectionHead
from gan_t2i.models.text_head import TextHead, TextHeadConfig
from gan_t2i.ops.checkpointing import Block
from gan_t2i.ops.layers import activate, channels_at, conv, linear
from gan_t2i.ops.resample import downsample
from gan_t2i.registry import register

LAST = 8  # side of the last map


class PlainBlock(Block):
    """Two convolutions on a residual path, with the map halved first where `halves`."""

    def __init__(self, inputs: int, outputs: int, *, halves: bool = False) -> None:
        super().__init__()
        self.halves = halves
        self.conv0 = conv(inputs, inputs, 3)
        self.conv1 = conv(inputs, outputs, 3, gain=0.5)
        self.skip = conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, r, r] -> [N, outputs, r, r], or half of r."""
        if self.halves:
            x = downsample(x)
        return self.skip(x) + self.conv1(activate(self.conv0(activate(x))))


@register("discriminator", "plain")
class PlainDiscriminator(Discriminator):
    """Maps images or latents and encoded captions to logits."""

    class Config(StrictConfig):
        """Settings of the discriminator."""

        channel_base: Count = 1024
        """A feature map at resolution r has channel_base / r channels, ..."""
        channel_max: Count = 96
        """... at most this many."""
        blocks: Count = 2
        """Residual blocks at 8 x 8."""
        text_head: TextHeadConfig = TextHeadConfig(layers=1)

    def __init__(self, config: Config, *, resolution: int, text_width: int, max_tokens: int, input_channels: int = 3) -> None:
        super().__init__()
        self.resolution = resolution
        self.text_head = TextHead(config.text_head, text_width=text_width, max_tokens=max_tokens)
        width_at = {
            side: channels_at(side, config.channel_base, config.channel_max) for side in (2**k for k in range(3, resolution.bit_length()))
        }
        layers: list[nn.Module] = [conv(input_channels, width_at[resolution], 3)]
        for side in sorted((side for side in width_at if side > LAST), reverse=True):
            layers += [PlainBlock(width_at[side], width_at[side]), PlainBlock(width_at[side], width_at[side // 2], halves=True)]
        layers += [PlainBlock(width_at[LAST], width_at[LAST]) for _ in range(config.blocks)]
        self.trunk = PlainTrunk(layers, width_at[LAST] * LAST**2, config.text_head.width)
        self.head = ProjectionHead(config.text_head.width)


class PlainTrunk(nn.Module):
    """Maps images [N, C, R, R] to features [N, D]."""

    def __init__(self, layers: list[nn.Module], flat: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.features = linear(flat, width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layers(images.contiguous(memory_format=torch.channels_last))
        features: Tensor = self.features(activate(x).flatten(1))
        return activate(features)
