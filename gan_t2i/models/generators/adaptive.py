"""Generator `adaptive`: GigaGAN's synthesis (arXiv 2303.05511, section 3.1), in which the caption chooses the kernels themselves, with
StyleGAN-T's mapping (arXiv 2301.09515). N batch, E encoder width, Z latent width, W style width, C channels, R resolution.

Where `style` scales the channels of one kernel for all captions, every convolution here has a bank of them and mixes its own for each item;
a resolution is convolutions, then self-attention, then attention to the words.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.models.attention_block import SelfAttentionBlock, WordAttentionBlock
from gan_t2i.models.base import Generator
from gan_t2i.models.generators.style import MapResolution, map_resolutions
from gan_t2i.models.mapping import MappingNetwork
from gan_t2i.models.text_head import TextCondition, TextHead, TextHeadConfig
from gan_t2i.ops.adaptive_conv import AdaptiveConv
from gan_t2i.ops.checkpointing import Block
from gan_t2i.ops.layers import activate, channels_at
from gan_t2i.ops.modulated_conv import ModulatedConv
from gan_t2i.ops.resample import upsample
from gan_t2i.registry import register
from gan_t2i.text.batch import TextBatch


class AdaptiveBlock(Block):
    """One resolution: up by two (but for the first), two adaptive convolutions, attention where configured, and its share of the picture."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        w_width: int,
        word_width: int,
        channels: int,
        kernels: int,
        up: bool,
        words: bool,
        self_attention: bool,
    ) -> None:
        super().__init__()
        self.up = up
        self.conv0 = AdaptiveConv(inputs, outputs, 3, w_width=w_width, kernels=kernels)
        self.conv1 = AdaptiveConv(outputs, outputs, 3, w_width=w_width, kernels=kernels)
        self.self_attention = SelfAttentionBlock(outputs) if self_attention else None
        self.word_attention = WordAttentionBlock(outputs, word_width) if words else None
        self.to_rgb = ModulatedConv(outputs, channels, 1, w_width=w_width, demodulate=False)

    def forward(self, x: Tensor, image: Tensor | None, w: Tensor, text: TextCondition) -> tuple[Tensor, Tensor]:
        """x [N, C, r, r], image [N, 3 or 4, r, r] or None, w [N, W] -> both at this block's resolution."""
        if self.up:
            x = upsample(x)
        x = activate(self.conv0(x, w))
        x = activate(self.conv1(x, w))
        if self.self_attention is not None:
            x = self.self_attention(x)
        if self.word_attention is not None:
            x = self.word_attention(x, text)
        rgb = self.to_rgb(x, w).float()
        return x, rgb if image is None else upsample(image) + rgb


@register("generator", "adaptive")
class AdaptiveGenerator(Generator):
    """z and encoded captions -> pictures in one pass.

    Args:
        config: the user's settings.
        resolution: R, a power of two from 16 to 512.
        text_width: E, width of the frozen encoder.
        max_tokens: most tokens a caption can have.
        channels: of a picture; 4 with alpha.
    """

    class Config(StrictConfig):
        """Settings of the generator."""

        z_width: Count = 64
        """Width of the latent z."""
        w_width: Count = 256
        """Width of the style w."""
        mapping_layers: Count = 2
        """Layers of the mapping network after the sentence vector has joined."""
        channel_base: Count = 512
        """A feature map at resolution r has channel_base / r channels, ..."""
        channel_max: Count = 128
        """... at most this many."""
        kernels: Annotated[int, Field(ge=2)] = 4
        """Kernels in the bank of each convolution; its arithmetic is this many times that of `style`."""
        word_resolutions: tuple[MapResolution, ...] = (8, 16)
        """Where every place attends to the words."""
        self_attention_resolutions: tuple[MapResolution, ...] = (8, 16)
        """Where every place attends to every other."""
        text_head: TextHeadConfig = TextHeadConfig()

    def __init__(self, config: Config, *, resolution: int, text_width: int, max_tokens: int, channels: int = 3) -> None:
        super().__init__()
        self.resolution = resolution
        self.z_width = config.z_width
        self.text_head = TextHead(config.text_head, text_width=text_width, max_tokens=max_tokens)
        self.mapping = MappingNetwork(config.z_width, config.text_head.width, config.w_width, config.mapping_layers)
        inputs = channels_at(4, config.channel_base, config.channel_max)
        self.constant = nn.Parameter(torch.randn(1, inputs, 4, 4))
        self.blocks = nn.ModuleList()
        for r in map_resolutions(resolution, [*config.word_resolutions, *config.self_attention_resolutions]):
            outputs = channels_at(r, config.channel_base, config.channel_max)
            self.blocks.append(
                AdaptiveBlock(
                    inputs,
                    outputs,
                    w_width=config.w_width,
                    word_width=config.text_head.width,
                    channels=channels,
                    kernels=config.kernels,
                    up=r > 4,
                    words=r in config.word_resolutions,
                    self_attention=r in config.self_attention_resolutions,
                )
            )
            inputs = outputs

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        condition = self.text_head(text)
        w = self.mapping(z, condition.sentence, truncation_psi)
        x = self.constant.expand(len(w), -1, -1, -1).contiguous(memory_format=torch.channels_last).to(w.dtype)
        image = None
        for block in self.blocks:
            x, image = block(x, image, w, condition)
        assert image is not None  # there are at least three blocks
        return image
