"""Attention of a feature map to itself and to the words. N batch, C channels, L tokens, D width of the words, W style width."""

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
    """Return the number of attention heads for a feature map: heads of HEAD_WIDTH, or wider ones where that does not divide `channels`."""
    return next(heads for heads in range(max(1, channels // HEAD_WIDTH), 0, -1) if channels % heads == 0)


def layout_bias(layout: Tensor, resolution: int) -> Tensor:
    """Turn a layout, log-probabilities [N, L, S * S], into an attention bias [N, r * r, L]: the log-ratio to a uniform distribution, at least
    -4, interpolated to `resolution` r."""
    side = math.isqrt(layout.shape[2])
    ratio = (layout + math.log(layout.shape[2])).clamp(min=-4).unflatten(2, (side, side))
    return F.interpolate(ratio, size=(resolution, resolution), mode="bilinear").flatten(2).transpose(1, 2)


class SelfAttentionBlock(nn.Module):
    """Computes x + self-attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = MultiHeadAttention(channels, heads_for(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return x + to_map(self.attention(self.norm(to_sequence(x))), x).to(x.dtype)


class WordAttentionBlock(nn.Module):
    """Computes x + cross-attention of every position to the words (AttnGAN, arXiv 1711.10485; GigaGAN, arXiv 2303.05511)."""

    def __init__(self, channels: int, word_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = MultiHeadAttention(channels, heads_for(channels), context_width=word_width)

    def forward(self, x: Tensor, text: TextCondition) -> Tensor:
        """Features [N, C, H, W] and N captions -> [N, C, H, W]."""
        attended = self.attention(self.norm(to_sequence(x)), text.words, text.mask)
        return x + to_map(attended, x).to(x.dtype)


class LocalStyleBlock(nn.Module):
    """Computes a style per position: the given w plus the words that the position attends to.

    Args:
        channels: C.
        word_width: D.
        w_width: W.
        layout: whether the caption's layout biases the attention, with a learned gain.
        smooth: see `upsample_to`, for a w that comes as a coarser map.
        heads: parallel attentions; divides W.
    """

    def __init__(self, channels: int, word_width: int, w_width: int, *, layout: bool = False, smooth: bool = False, heads: int = 4) -> None:
        super().__init__()
        self.smooth = smooth
        self.norm = nn.LayerNorm(channels)
        self.to_place = nn.Linear(channels, w_width)
        self.attention = MultiHeadAttention(w_width, heads, context_width=word_width)
        self.layout_gain = nn.Parameter(torch.ones(())) if layout else None

    def forward(self, x: Tensor, w: Tensor, text: TextCondition) -> Tensor:
        """x [N, C, r, r] and w [N, W] or [N, W, h, h], h <= r -> w [N, W, r, r]."""
        bias = None if text.layout is None or self.layout_gain is None else self.layout_gain * layout_bias(text.layout, x.shape[-1])
        attended = to_map(self.attention(self.to_place(self.norm(to_sequence(x))), text.words, text.mask, bias), x)
        return attended + (w[:, :, None, None] if w.ndim == 2 else upsample_to(w, x.shape[-1], smooth=self.smooth))
