"""The trainable text head that the generator and the discriminator each own, on top of the frozen sentence encoder.

An input projection, learned positions, a global token and pre-norm self-attention layers (Vaswani et al. 2017, arXiv 1706.03762; a
learned head over frozen tokens as in GigaGAN, arXiv 2303.05511). N batch, L tokens, E width of the encoder, D width of the head.
"""

from dataclasses import dataclass
from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.ops.attention import MultiHeadAttention
from gan_t2i.ops.layers import activate, linear
from gan_t2i.text.batch import TextBatch


class TextHeadConfig(StrictConfig):
    """Size of a text head."""

    width: Count = 256
    """Channels of the word and sentence vectors."""
    layers: Count = 2
    heads: Count = 4

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


@dataclass(frozen=True)
class TextCondition:
    """N captions as a network reads them."""

    words: Tensor  # [N, L, D]
    mask: Tensor  # [N, L] bool, True at a real token
    sentence: Tensor  # [N, D]
    layout: Tensor | None = None  # [N, L, P], log-probabilities over P positions for the object that each token names

    def __getitem__(self, index: Tensor | slice) -> "TextCondition":
        """Return the captions that `index` selects, in its order."""
        return TextCondition(self.words[index], self.mask[index], self.sentence[index], None if self.layout is None else self.layout[index])

    def float(self) -> "TextCondition":
        """Return the same in float32, for computations outside autocast."""
        return TextCondition(self.words.float(), self.mask, self.sentence.float(), self.layout)


class SelfAttentionLayer(nn.Module):
    """Pre-norm self-attention and a two-layer perceptron, each on a residual path."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.widen = linear(width, 2 * width)
        self.narrow = linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [N, L, D], mask bool [N, L], or one per query [N or 1, L, L] -> [N, L, D]."""
        x = x + self.attention(self.norm_attention(x), mask=mask)
        return x + self.narrow(activate(self.widen(self.norm_mlp(x))))


class TextHead(nn.Module):
    """Maps token embeddings and the pooled vector to contextual words and a sentence vector, which is the global token's output.

    Args:
        config: size of the head.
        text_width: E, width of the frozen encoder.
        max_tokens: largest number of tokens in a caption.
    """

    def __init__(self, config: TextHeadConfig, *, text_width: int, max_tokens: int) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(text_width)
        self.project = linear(text_width, config.width)
        self.norm_pooled = nn.LayerNorm(text_width)
        self.project_pooled = linear(text_width, config.width)
        self.positions = nn.Parameter(torch.randn(max_tokens, config.width) * 0.1)
        self.layers = nn.ModuleList(SelfAttentionLayer(config.width, config.heads) for _ in range(config.layers))
        self.norm_output = nn.LayerNorm(config.width)

    def forward(self, text: TextBatch) -> TextCondition:
        """Return the `TextCondition` of encoded captions, with the same N and L. Padding changes nothing; more than `max_tokens` tokens raise
        ValueError."""
        length = text.tokens.shape[1]
        if length > len(self.positions):
            raise ValueError(f"{length} tokens given, at most {len(self.positions)} allowed")
        words = self.project(self.norm_tokens(text.tokens)) + self.positions[:length]  # [N, L, D]
        # The global token starts as the pooled vector; the bias of its projection is the learned part that all captions share.
        global_token = self.project_pooled(self.norm_pooled(text.pooled))[:, None]  # [N, 1, D]
        x = torch.cat([global_token, words], dim=1)  # [N, 1 + L, D]
        mask = torch.cat([torch.ones_like(text.mask[:, :1]), text.mask], dim=1)
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm_output(x)
        return TextCondition(words=x[:, 1:], mask=text.mask, sentence=x[:, 0])
