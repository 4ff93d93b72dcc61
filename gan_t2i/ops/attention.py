"""Scaled dot-product attention, written out: softmax(QK^T / sqrt(d_k)) V (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

The fused kernel is avoided on purpose: gradient penalties need a double backward, and on CPUs the bfloat16 backward of this form is faster
at the sizes used here. N batch, Q queries, L keys, C width, H heads.
"""

import math

from torch import Tensor, nn


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Return softmax(QK^T / sqrt(d_k) + bias) V.

    Args:
        query: [..., Q, d_k].
        key: [..., L, d_k].
        value: [..., L, d_v].
        mask: bool, broadcast to [..., Q, L]; keys at False get no weight. Every query needs one True.
        bias: added to the scores, broadcast to [..., Q, L].

    Returns:
        [..., Q, d_v].
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # [..., Q, L]
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value


class MultiHeadAttention(nn.Module):
    """Attention of a sequence to itself (without a context) or to the tokens of a context.

    Args:
        width: channels C of the queries and of the output.
        heads: parallel attentions; divides the width.
        context_width: channels of the context, `width` for self-attention.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"attention width {width} must be a multiple of heads {heads}")
        self.heads = heads
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(context_width or width, width, bias=False)
        self.to_value = nn.Linear(context_width or width, width, bias=False)
        self.to_output = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x [N, Q, C], context [N, L, context_width], mask bool [N, L] or, per query, [N or 1, Q, L], and bias [N, Q, L], shared by all
        heads -> [N, Q, C]."""
        context = x if context is None else context
        query, key, value = (self._split(t) for t in (self.to_query(x), self.to_key(context), self.to_value(context)))  # [N, H, *, C/H]
        if mask is not None:
            mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
        attended = attend(query, key, value, mask, None if bias is None else bias[:, None])  # [N, H, Q, C/H]
        return self.to_output(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
