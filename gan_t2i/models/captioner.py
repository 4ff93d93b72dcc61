"""A network that tells a picture's caption, word by word. What it was taught by real pairs, it can ask of drawn pictures.

Telling is a better teacher than telling apart: each word of each caption is a question with one right answer among all words, so that a few
minutes teach which of two objects is red and which is left, where a score of whole captions against wrong ones learns that they differ
(re-description: MirrorGAN, Qiao et al. 2019, arXiv 1903.05854; for labels: AC-GAN, Odena et al. 2017, arXiv 1610.09585).
N batch, L tokens, V vocabulary, C channels, P places, D width.
"""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.models.residual_trunk import HEAD_RESOLUTION, ResidualTrunk
from gan_t2i.models.text_head import SelfAttentionLayer
from gan_t2i.ops.attention import MultiHeadAttention
from gan_t2i.ops.layers import channels_at, linear, to_sequence
from gan_t2i.ops.resample import avg_pool_to
from gan_t2i.text.tiny import word_pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD = 0  # the place of [PAD] in every vocabulary


class CaptionerConfig(StrictConfig):
    """The captioner's size. Larger pictures are averaged down to `side`, so that it costs the same at every resolution."""

    side: Count = 32
    channel_base: Count = 512
    """A feature map at resolution r has channel_base / r channels, ..."""
    channel_max: Count = 128
    """... at most this many."""
    width: Count = 128
    """D, of the words and places."""
    layers: Count = 3
    heads: Count = 4
    vocabulary_size: Count = 2000
    """Most words that it knows; rarer ones are spelled."""
    max_tokens: Count = 48
    """Longer captions are told so far."""


class CaptionerLayer(nn.Module):
    """Words look into the picture, then back at the words before them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.places = MultiHeadAttention(width, heads)
        self.words = SelfAttentionLayer(width, heads)

    def forward(self, x: Tensor, places: Tensor, before: Tensor) -> Tensor:
        """x [N, L, D], places [N, P, D], before bool [1, L, L], True at what a word may see -> [N, L, D]."""
        x = x + self.places(self.norm(x), places)
        return self.words(x, before)


class Captioner(nn.Module):
    """Pictures and captions -> how likely the captions are, given the pictures.

    Args:
        config: its size.
        resolution: R of the pictures, a power of two from 16.
        vocabulary: as `gan_t2i.text.tiny.count_vocabulary` counts it.
    """

    def __init__(self, config: CaptionerConfig, *, resolution: int, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.side = min(resolution, config.side)
        self.vocabulary = list(vocabulary)
        self.trunk = ResidualTrunk(self.side, config.channel_base, config.channel_max)
        channels = channels_at(HEAD_RESOLUTION, config.channel_base, config.channel_max)
        self.norm_places = nn.LayerNorm(channels)
        self.to_places = nn.Linear(channels, config.width)
        self.positions = nn.Parameter(coordinates(HEAD_RESOLUTION) @ torch.randn(6, config.width))
        self.embedding = nn.Embedding(len(self.vocabulary), config.width)
        self.order = nn.Parameter(torch.randn(config.max_tokens, config.width) * 0.1)
        self.layers = nn.ModuleList(CaptionerLayer(config.width, config.heads) for _ in range(config.layers))
        self.norm_output = nn.LayerNorm(config.width)
        self.to_word = linear(config.width, len(self.vocabulary))

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """N captions -> their words' places in the vocabulary, int64 [N, L] on the CPU, each begun and ended, and padded with `PAD`."""
        told = [encoding.ids[: len(self.order) + 1] for encoding in self._tokenizer.encode_batch(list(captions))]
        longest = max(map(len, told))
        return torch.tensor([[*ids, *[PAD] * (longest - len(ids))] for ids in told])

    @functools.cached_property
    def _tokenizer(self) -> "Tokenizer":
        return word_pieces({token: number for number, token in enumerate(self.vocabulary)})

    def forward(self, pictures: Tensor, tokens: Tensor) -> Tensor:
        """Pictures [N, 3, R, R] in [-1, 1], or averaged ones, and what `tokens` made of their captions [N, L] -> [N] float32, the mean of
        a caption's log-probabilities, each of a token given the picture and the tokens before it."""
        features = self.trunk(avg_pool_to(pictures, self.side))
        places = self.to_places(self.norm_places(to_sequence(features))) + self.positions  # [N, P, D]
        given, asked = tokens[:, :-1], tokens[:, 1:]
        length = given.shape[1]
        before = torch.ones(1, length, length, dtype=torch.bool, device=tokens.device).tril()
        x = self.embedding(given) + self.order[:length]
        for layer in self.layers:
            x = layer(x, places, before)
        logits = self.to_word(self.norm_output(x)).float()  # [N, L - 1, V]
        told = -F.cross_entropy(logits.flatten(0, 1), asked.flatten(), ignore_index=PAD, reduction="none").view(asked.shape)
        return told.sum(dim=1) / (asked != PAD).sum(dim=1)


def coordinates(side: int) -> Tensor:
    """Smooth functions of the places of a map, [side * side, 6]: what is left of what can be read off them from the start.

    At half their size, which of two objects is left was learned twice as late, and not by every seed.
    """
    line = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y, x * y, (math.pi * x).cos(), (math.pi * y).cos(), torch.ones_like(x)], dim=-1).flatten(0, 1)
