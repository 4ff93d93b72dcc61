"""Generator `style`: StyleGAN2's synthesis (arXiv 1912.04958) told by the words through cross-attention, with StyleGAN-T's mapping
(arXiv 2301.09515). N batch, L tokens, E encoder width, Z latent width, W style width, C channels, R resolution."""

from collections.abc import Iterable
from dataclasses import replace
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


def map_resolutions(resolution: int, attended: Iterable[int]) -> list[int]:
    """4, 8, ... `resolution`; one of `attended` that is not among them raises `UsageError`."""
    resolutions = [2**k for k in range(2, resolution.bit_length())]
    if wrong := {*attended} - {*resolutions}:
        raise UsageError(f"generator.params: attention at {sorted(wrong)} px, but the resolutions of this network are {resolutions}")
    return resolutions


class SynthesisBlock(Block):
    """One resolution: up by two (but for the first), two modulated convolutions, attention where configured, and its share of the picture."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        w_width: int,
        word_width: int,
        channels: int,
        up: bool,
        words: bool,
        local_styles: bool,
        placed: bool,
        smooth: bool,
        self_attention: bool,
        second_order: bool,
    ) -> None:
        super().__init__()
        self.up = up
        self.conv0 = ModulatedConv(inputs, outputs, 3, w_width=w_width, second_order=second_order, smooth=smooth)
        self.conv1 = ModulatedConv(outputs, outputs, 3, w_width=w_width, second_order=second_order, smooth=smooth)
        self.self_attention = SelfAttentionBlock(outputs) if self_attention else None
        self.word_attention = WordAttentionBlock(outputs, word_width) if words and not local_styles else None
        self.local_style = LocalStyleBlock(outputs, word_width, w_width, placed=placed, smooth=smooth) if words and local_styles else None
        self.to_rgb = ModulatedConv(outputs, channels, 1, w_width=w_width, demodulate=False, smooth=smooth)

    def forward(self, x: Tensor, image: Tensor | None, w: Tensor, text: TextCondition) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, C, r, r], image [N, 3 or 4, r, r] or None, both at this block's resolution in the result; w [N, W], which the words make a
        map [N, W, r, r] where styles are local."""
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
        word_resolutions: tuple[MapResolution, ...] = (8, 16)
        """Where every place attends to the words."""
        local_styles: bool = False
        """What a place finds in the words changes its style, there and at all finer resolutions, instead of being added to its features."""
        smooth_styles: bool = False
        """Local styles go over into each other at finer resolutions; else each covers a square."""
        self_attention_resolutions: tuple[MapResolution, ...] = ()
        """Where every place attends to every other."""
        second_order: bool = False
        """Second-order styles, s = m1 * m2 + m3."""
        text_head: TextHeadConfig = TextHeadConfig()
        layout: bool = False
        """Whether a network that learned it from real pairs, before the run, says where what a word names is to be; local styles heed it."""

        @model_validator(mode="after")
        def _placed_locally(self) -> Self:
            if self.layout and not self.local_styles:
                raise ValueError("layout: only local styles heed it: set local_styles too")
            if self.smooth_styles and not self.local_styles:
                raise ValueError("smooth_styles: it is local styles that are smooth: set local_styles too")
            return self

    def __init__(self, config: Config, *, resolution: int, text_width: int, max_tokens: int, channels: int = 3) -> None:
        super().__init__()
        self.resolution = resolution
        self.z_width = config.z_width
        self.text_head = TextHead(config.text_head, text_width=text_width, max_tokens=max_tokens)
        if config.layout:
            self.layout = LayoutPredictor(TextHeadConfig(), text_width=text_width, max_tokens=max_tokens).requires_grad_(False)
        self.mapping = MappingNetwork(config.z_width, config.text_head.width, config.w_width, config.mapping_layers)
        first = channels_at(4, config.channel_base, config.channel_max)
        self.constant = nn.Parameter(torch.randn(1, first, 4, 4))
        self.blocks = nn.ModuleList()
        inputs = first
        for r in map_resolutions(resolution, [*config.word_resolutions, *config.self_attention_resolutions]):
            outputs = channels_at(r, config.channel_base, config.channel_max)
            self.blocks.append(
                SynthesisBlock(
                    inputs,
                    outputs,
                    w_width=config.w_width,
                    word_width=config.text_head.width,
                    channels=channels,
                    up=r > 4,
                    words=r in config.word_resolutions,
                    local_styles=config.local_styles,
                    placed=config.layout,
                    smooth=config.smooth_styles,
                    self_attention=r in config.self_attention_resolutions,
                    second_order=config.second_order,
                )
            )
            inputs = outputs

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        condition = self.text_head(text)
        if self.layout is not None:
            with torch.no_grad():
                condition = replace(condition, places=self.layout(text))
        w = self.mapping(z, condition.sentence, truncation_psi)
        return self.synthesize(w, condition)

    def synthesize(self, w: Tensor, condition: TextCondition) -> Tensor:
        """w [N, W] and what the text head says -> pictures [N, C, R, R] float32."""
        x = self.constant.expand(len(w), -1, -1, -1).contiguous(memory_format=torch.channels_last).to(w.dtype)
        image = None
        for block in self.blocks:
            x, image, w = block(x, image, w, condition)
        assert image is not None  # there are at least three blocks
        return image
