"""Generator `transformer`: a transformer over patches, modulated by the style (GAT, arXiv 2509.24935; adaptive norms: DiT, arXiv 2212.09748).

N batch, L tokens, P patches, D width, W style width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.models.base import Generator
from gan_t2i.models.mapping import MappingNetwork
from gan_t2i.models.text_head import TextCondition, TextHead, TextHeadConfig
from gan_t2i.models.transformer import Mlp, check_patch, from_patches
from gan_t2i.ops.attention import MultiHeadAttention
from gan_t2i.ops.checkpointing import Block
from gan_t2i.ops.layers import linear
from gan_t2i.registry import register
from gan_t2i.text.batch import TextBatch


class TransformerBlock(Block):
    """Self-attention, attention to the words, and a perceptron, each on a residual path after a norm that the style modulates."""

    def __init__(self, width: int, heads: int, word_width: int, w_width: int) -> None:
        super().__init__()
        self.style = linear(w_width, 4 * width, gain=0.5)
        self.self_attention = MultiHeadAttention(width, heads)
        self.norm_words = nn.LayerNorm(width)
        self.word_attention = MultiHeadAttention(width, heads, context_width=word_width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, w: Tensor, text: TextCondition) -> Tensor:
        """x [N, P, D], w [N, W] and N captions -> [N, P, D]."""
        gain0, offset0, gain1, offset1 = self.style(w)[:, None].chunk(4, dim=2)
        x = x + self.self_attention(F.layer_norm(x, x.shape[2:]) * (1 + gain0) + offset0)
        x = x + self.word_attention(self.norm_words(x), text.words, text.mask)
        return x + self.mlp(F.layer_norm(x, x.shape[2:]) * (1 + gain1) + offset1)


@register("generator", "transformer")
class TransformerGenerator(Generator):
    """Maps z and encoded captions to images or latents in one pass."""

    class Config(StrictConfig):
        """Settings of the generator."""

        z_width: Count = 32
        """Width of the latent z."""
        w_width: Count = 256
        """Width of the style w."""
        mapping_layers: Count = 2
        """Layers of the mapping network after the sentence vector has joined."""
        patch: Count = 2
        """Side of a patch."""
        width: Count = 192
        """D, channels of a token."""
        layers: Count = 4
        heads: Count = 6
        text_head: TextHeadConfig = TextHeadConfig(layers=1)

    def __init__(self, config: Config, *, resolution: int, text_width: int, max_tokens: int, channels: int = 3) -> None:
        super().__init__()
        check_patch(config.patch, resolution, "generator")
        self.resolution, self.z_width, self.patch, self.width = resolution, config.z_width, config.patch, config.width
        self.text_head = TextHead(config.text_head, text_width=text_width, max_tokens=max_tokens)
        self.mapping = MappingNetwork(config.z_width, config.text_head.width, config.w_width, config.mapping_layers)
        positions = (resolution // config.patch) ** 2
        self.positions = nn.Parameter(torch.randn(positions, config.width) * 0.5)
        self.start = linear(config.w_width, positions * config.width)
        word_width = config.text_head.width
        self.blocks = nn.ModuleList(TransformerBlock(config.width, config.heads, word_width, config.w_width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.output = linear(config.width, channels * config.patch**2)

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        condition = self.text_head(text)
        w = self.mapping(z, condition.sentence, truncation_psi)
        x = self.start(w).unflatten(1, (-1, self.width)) + self.positions
        for block in self.blocks:
            x = block(x, w, condition)
        return from_patches(self.output(self.norm(x)), self.patch, self.resolution).float()
