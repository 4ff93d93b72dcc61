"""Generator `style`: StyleGAN2's synthesis network (arXiv 1912.04958), conditioned on the words by cross-attention, with StyleGAN-T's mapping
network (arXiv 2301.09515). N batch, L tokens, E encoder width, Z latent width, W style width, C channels, R resolution."""

from dataclasses import replace
from functools import partial
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.core.errors import UsageError
from gan_t2i.models.attention_block import LocalStyleBlock, SelfAttentionBlock, WordAttentionBlock
from gan_t2i.models.base import Generator
from gan_t2i.models.layout import LayoutPredictor
from gan_t2i.models.mapping import MappingNetwork
from gan_t2i.models.text_head import TextCondition, TextHead, TextHeadConfig
from gan_t2i.ops.checkpointing import Block
from gan_t2i.ops.layers import activate, channels_at
from gan_t2i.ops.modulated_conv import ModulatedConv
from gan_t2i.ops.resample import upsample
from gan_t2i.registry import register
from gan_t2i.text.batch import TextBatch

MapResolution = Literal[4, 8, 16, 32, 64, 128, 256, 512]


class StyleConfig(StrictConfig):
    """Settings of the generator `style`."""

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
    word_resolutions: tuple[MapResolution, ...] = (8, 16)
    """Resolutions at which the feature map attends to the words."""
    local_styles: bool = False
    """Let the attended words change the style at each position, there and at all finer resolutions, instead of being added to the features."""
    smooth_styles: bool = False
    """Interpolate local styles at finer resolutions; without it each style covers a square."""
    self_attention_resolutions: tuple[MapResolution, ...] = ()
    """Resolutions at which the feature map attends to itself."""
    second_order: bool = False
    """Second-order styles, s = m1 * m2 + m3."""
    text_head: TextHeadConfig = TextHeadConfig()
    layout: bool = False
    """Bias the attention of local styles with a layout predictor, pretrained on real pairs before the run."""

    @model_validator(mode="after")
    def _need_local_styles(self) -> Self:
        if self.layout and not self.local_styles:
            raise ValueError("layout biases local styles: set local_styles too")
        if self.smooth_styles and not self.local_styles:
            raise ValueError("smooth_styles interpolates local styles: set local_styles too")
        return self

    def channels_at(self, resolution: int) -> int:
        """Return the width of the feature maps at `resolution`."""
        return channels_at(resolution, self.channel_base, self.channel_max)


class SynthesisBlock(Block):
    """One resolution: upsampling, two modulated convolutions, attention where configured, and this resolution's share of the image.

    Args:
        config: settings of the generator.
        resolution: r, of the block's output; the block at 4 does not upsample.
        image_channels: 3, or 4 with alpha.
    """

    def __init__(self, config: StyleConfig, resolution: int, image_channels: int) -> None:
        super().__init__()
        self.up = resolution > 4
        inputs, outputs = config.channels_at(max(4, resolution // 2)), config.channels_at(resolution)
        w_width, word_width, smooth = config.w_width, config.text_head.width, config.smooth_styles
        attends = resolution in config.word_resolutions
        modulated = partial(ModulatedConv, w_width=w_width, smooth=smooth)
        self.conv0 = modulated(inputs, outputs, 3, second_order=config.second_order)
        self.conv1 = modulated(outputs, outputs, 3, second_order=config.second_order)
        self.self_attention = SelfAttentionBlock(outputs) if resolution in config.self_attention_resolutions else None
        self.word_attention = WordAttentionBlock(outputs, word_width) if attends and not config.local_styles else None
        self.local_style = (
            LocalStyleBlock(outputs, word_width, w_width, layout=config.layout, smooth=smooth) if attends and config.local_styles else None
        )
        self.to_rgb = modulated(outputs, image_channels, 1, demodulate=False)

    def forward(self, x: Tensor, image: Tensor | None, w: Tensor, text: TextCondition) -> tuple[Tensor, Tensor, Tensor]:
        """Features x and image of the previous block (None for the first) and w [N, W] or [N, W, h, h] -> x [N, C, r, r], image
        [N, 3 or 4, r, r] float32, and w, which local styles turn into a map [N, W, r, r]."""
        if self.up:
            x = upsample(x)
        x = activate(self.conv0(x, w))
        if self.self_attention is not None:
            x = self.self_attention(x)
        if self.word_attention is not None:
            x = self.word_attention(x, text)
        if self.local_style is not None:
            w = self.local_style(x, w, text)
        x = activate(self.conv1(x, w))
        rgb = self.to_rgb(x, w).float()
        return x, rgb if image is None else upsample(image) + rgb, w


@register("generator", "style")
class StyleGenerator(Generator):
    """Maps z and encoded captions to images in one pass.

    Raises `UsageError` where attention is configured at a resolution that this network does not have, or no channel is left at one.
    """

    Config = StyleConfig

    def __init__(self, config: StyleConfig, *, resolution: int, text_width: int, max_tokens: int, channels: int = 3) -> None:
        super().__init__()
        resolutions = [2**k for k in range(2, resolution.bit_length())]  # 4, 8, ... R
        if missing := {*config.word_resolutions, *config.self_attention_resolutions} - {*resolutions}:
            raise UsageError(f"generator.params: attention at {sorted(missing)} px, but the resolutions of this network are {resolutions}")
        self.resolution = resolution
        self.z_width = config.z_width
        self.text_head = TextHead(config.text_head, text_width=text_width, max_tokens=max_tokens)
        if config.layout:
            self.layout = LayoutPredictor(TextHeadConfig(), text_width=text_width, max_tokens=max_tokens).requires_grad_(False)
        self.mapping = MappingNetwork(config.z_width, config.text_head.width, config.w_width, config.mapping_layers)
        self.constant = nn.Parameter(torch.randn(1, config.channels_at(4), 4, 4))
        self.blocks = nn.ModuleList(SynthesisBlock(config, r, channels) for r in resolutions)

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        condition = self.text_head(text)
        if self.layout is not None:
            with torch.no_grad():
                condition = replace(condition, layout=self.layout(text))
        w = self.mapping(z, condition.sentence, truncation_psi)
        return self.synthesize(w, condition)

    def synthesize(self, w: Tensor, condition: TextCondition) -> Tensor:
        """Draw images [N, C, R, R] float32 from styles w [N, W] and the output of the text head."""
        x = self.constant.expand(w.shape[0], -1, -1, -1).contiguous(memory_format=torch.channels_last).to(w.dtype)
        image = None
        for block in self.blocks:
            x, image, w = block(x, image, w, condition)
        assert image is not None  # there are at least three blocks
        return image
