"""Attention of a feature map to itself and to the words. N batch, C channels, D width of the words, W style width."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.models.text_head import TextCondition
from gan_t2i.ops.attention import MultiHeadAttention
from gan_t2i.ops.layers import to_map, to_sequence
from gan_t2i.ops.resample import upsample_to

# Channels of one attention head; narrower maps get a single head.
HEAD_WIDTH = 32


def heads_for(channels: int) -> int:
    """Number of attention heads for a feature map of `channels`: heads of HEAD_WIDTH, or wider where that does not divide."""
    return next(heads for heads in range(max(1, channels // HEAD_WIDTH), 0, -1) if channels % heads == 0)


def placement(places: Tensor, resolution: int) -> Tensor:
    """Log-probabilities [N, L, S * S] of places -> [N, r * r, L], by how much a word is likelier there than anywhere."""
    side = math.isqrt(places.shape[2])
    ratio = (places + math.log(places.shape[2])).clamp(min=-4).unflatten(2, (side, side))
    return F.interpolate(ratio, size=(resolution, resolution), mode="bilinear").flatten(2).transpose(1, 2)


class SelfAttentionBlock(nn.Module):
    """x + attention of every place to every other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = MultiHeadAttention(channels, heads_for(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return x + to_map(self.attention(self.norm(to_sequence(x))), x).to(x.dtype)


class WordAttentionBlock(nn.Module):
    """x + cross-attention of every place to the words (AttnGAN, arXiv 1711.10485; GigaGAN, arXiv 2303.05511)."""

    def __init__(self, channels: int, word_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = MultiHeadAttention(channels, heads_for(channels), context_width=word_width)

    def forward(self, x: Tensor, text: TextCondition) -> Tensor:
        """[N, C, H, W] with the words of the same N captions -> [N, C, H, W]."""
        attended = self.attention(self.norm(to_sequence(x)), text.words, text.mask)
        return x + to_map(attended, x).to(x.dtype)


class LocalStyleBlock(nn.Module):
    """w at each place: the picture's, or the coarser block's, and what the place finds in the words."""

    def __init__(self, channels: int, word_width: int, w_width: int, *, placed: bool = False, smooth: bool = False, heads: int = 4) -> None:
        super().__init__()
        self.smooth = smooth
        self.norm = nn.LayerNorm(channels)
        self.to_place = nn.Linear(channels, w_width)
        self.attention = MultiHeadAttention(w_width, heads, context_width=word_width)
        self.layout_gain = nn.Parameter(torch.ones(())) if placed else None  # in where words were placed

    def forward(self, x: Tensor, w: Tensor, text: TextCondition) -> Tensor:
        """x [N, C, r, r] and w [N, W] or [N, W, h, h], h <= r -> w [N, W, r, r]."""
        bias = None if text.places is None or self.layout_gain is None else self.layout_gain * placement(text.places, x.shape[-1])
        found = to_map(self.attention(self.to_place(self.norm(to_sequence(x))), text.words, text.mask, bias), x)
        return found + (w[:, :, None, None] if w.ndim == 2 else upsample_to(w, x.shape[-1], smooth=self.smooth))
