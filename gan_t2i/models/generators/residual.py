"""Generator `residual`: residual blocks modulated by a style, from a map that is a linear function of the style.

StyleGAN2 begins with a constant; this network begins with an 8 x 8 map for each caption and z, and its residual blocks have conditional
normalisation, as in BigGAN (arXiv 1809.11096). The words join by cross-attention. N batch, Z latent width, W style width, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.models.attention_block import WordAttentionBlock
from gan_t2i.models.base import Generator
from gan_t2i.models.mapping import MappingNetwork
from gan_t2i.models.text_head import TextCondition, TextHead, TextHeadConfig
from gan_t2i.ops.checkpointing import Block
from gan_t2i.ops.layers import activate, channels_at, conv, linear
from gan_t2i.ops.resample import upsample
from gan_t2i.registry import register
from gan_t2i.text.batch import TextBatch

START = 8  # side of the first map
GROUPS = 8  # of channels that are normalised together


class ResidualConfig(StrictConfig):
    """Settings of the generator `residual`."""

    z_width: Count = 32
    """Width of the latent z."""
    w_width: Count = 256
    """Width of the style w."""
    mapping_layers: Count = 2
    """Layers of the mapping network after the sentence vector has joined."""
    channel_base: Count = 1024
    """A feature map at resolution r has channel_base / r channels, in whole groups of 8, ..."""
    channel_max: Count = 96
    """... at most this many."""
    blocks: Count = 3
    """Residual blocks at 8 x 8; there are two at each finer resolution."""
    word_blocks: int = 2
    """The words are read after so many of the blocks at 8 x 8."""
    text_head: TextHeadConfig = TextHeadConfig(layers=1)


class ModulatedBlock(Block):
    """Group normalisation whose gain and offset come from the style, and two convolutions, on a residual path."""

    def __init__(self, inputs: int, outputs: int, w_width: int) -> None:
        super().__init__()
        self.style = linear(w_width, 2 * inputs, gain=0.5)
        self.conv0 = conv(inputs, outputs, 3)
        self.conv1 = conv(outputs, outputs, 3, gain=0.1)
        self.skip = conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [N, inputs, r, r] and w [N, W] -> [N, outputs, r, r]."""
        gain, offset = self.style(w)[:, :, None, None].chunk(2, dim=1)
        y = activate(F.group_norm(x, GROUPS) * (1 + gain) + offset)
        return self.skip(x) + self.conv1(activate(self.conv0(y)))


@register("generator", "residual")
class ResidualGenerator(Generator):
    """Maps z and encoded captions to images or latents in one pass."""

    Config = ResidualConfig

    def __init__(self, config: ResidualConfig, *, resolution: int, text_width: int, max_tokens: int, channels: int = 3) -> None:
        super().__init__()
        self.resolution, self.z_width, w_width = resolution, config.z_width, config.w_width

        def width_at(side: int) -> int:
            return max(GROUPS, channels_at(side, config.channel_base, config.channel_max) // GROUPS * GROUPS)

        self.text_head = TextHead(config.text_head, text_width=text_width, max_tokens=max_tokens)
        self.mapping = MappingNetwork(config.z_width, config.text_head.width, w_width, config.mapping_layers)
        first = width_at(START)
        self.start = linear(w_width, first * START**2)
        self.blocks = nn.ModuleList(ModulatedBlock(first, first, w_width) for _ in range(config.blocks))
        self.word_attention = nn.ModuleList(WordAttentionBlock(first, config.text_head.width) for _ in range(config.word_blocks))
        sides = [2**k for k in range(4, resolution.bit_length())]  # 16, ... R
        widths = [(width_at(side // 2 if number == 0 else side), width_at(side)) for side in sides for number in range(2)]
        self.finer = nn.ModuleList(ModulatedBlock(*pair, w_width) for pair in widths)
        self.output = conv(width_at(resolution), channels, 3)

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        condition = self.text_head(text)
        return self.synthesize(self.mapping(z, condition.sentence, truncation_psi), condition)

    def synthesize(self, w: Tensor, condition: TextCondition) -> Tensor:
        """Draw images [N, C, R, R] float32 from styles w [N, W] and the output of the text head."""
        x = self.start(w).unflatten(1, (-1, START, START)).contiguous(memory_format=torch.channels_last)
        for number, block in enumerate(self.blocks):
            x = block(x, w)
            if number < len(self.word_attention):
                x = self.word_attention[number](x, condition)
        for number, block in enumerate(self.finer):
            if number % 2 == 0:
                x = upsample(x)
            x = block(x, w)
        return self.output(activate(F.group_norm(x, GROUPS))).float()
