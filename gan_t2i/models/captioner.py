"""Captioner: the likelihood of a caption given an image, token by token. Pretrained on real pairs, it scores generated images.

The log-likelihood of a caption is a denser signal than the score of a real caption against wrong ones: each token is a classification over
the whole vocabulary, so a few minutes of training teach which of two objects is red and which is left (re-description: MirrorGAN, Qiao et
al. 2019, arXiv 1903.05854; for class labels: AC-GAN, Odena et al. 2017, arXiv 1610.09585).
N batch, L tokens, V vocabulary, C channels, P positions of the feature map, D width.
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

PAD = 0  # id of [PAD] in every vocabulary


class CaptionerConfig(StrictConfig):
    """Size of the captioner. Larger images are average-pooled to `side`, so that it costs the same at every resolution."""

    side: Count = 32
    channel_base: Count = 512
    """A feature map at resolution r has channel_base / r channels, ..."""
    channel_max: Count = 128
    """... at most this many."""
    width: Count = 128
    """D, width of the tokens and of the image's positions."""
    layers: Count = 3
    heads: Count = 4
    vocabulary_size: Count = 2000
    """Largest number of words in the vocabulary; rarer words are spelled."""
    max_tokens: Count = 48
    """Longer captions are cut to this many tokens."""


class CaptionerLayer(nn.Module):
    """Cross-attention of the tokens to the image, then causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.cross_attention = MultiHeadAttention(width, heads)
        self.self_attention = SelfAttentionLayer(width, heads)

    def forward(self, x: Tensor, image: Tensor, causal_mask: Tensor) -> Tensor:
        """x [N, L, D], image [N, P, D], causal_mask bool [1, L, L], True where a token may look -> [N, L, D]."""
        x = x + self.cross_attention(self.norm(x), image)
        return self.self_attention(x, causal_mask)


class Captioner(nn.Module):
    """Maps images and captions to the captions' mean log-likelihoods per token.

    Args:
        config: size of the network.
        resolution: R of the images, or the side of latents, a power of two from 8.
        vocabulary: tokens, as `gan_t2i.text.tiny.count_vocabulary` returns them.
        channels: C of the images, without alpha, or of the latents.
    """

    def __init__(self, config: CaptionerConfig, *, resolution: int, vocabulary: Sequence[str], channels: int = 3) -> None:
        super().__init__()
        self.side = min(resolution, config.side)
        self.vocabulary = list(vocabulary)
        self.trunk = ResidualTrunk(self.side, config.channel_base, config.channel_max, image_channels=channels)
        channels = channels_at(HEAD_RESOLUTION, config.channel_base, config.channel_max)
        self.norm_features = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, config.width)
        self.positions = nn.Parameter(coordinates(HEAD_RESOLUTION) @ torch.randn(6, config.width))
        self.embedding = nn.Embedding(len(self.vocabulary), config.width)
        self.token_positions = nn.Parameter(torch.randn(config.max_tokens, config.width) * 0.1)
        self.layers = nn.ModuleList(CaptionerLayer(config.width, config.heads) for _ in range(config.layers))
        self.norm_output = nn.LayerNorm(config.width)
        self.to_logits = linear(config.width, len(self.vocabulary))

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Convert N captions to token ids, int64 [N, L] on the CPU, each with a start and an end token, padded with `PAD`."""
        ids = [encoding.ids[: len(self.token_positions) + 1] for encoding in self._tokenizer.encode_batch(list(captions))]
        longest = max(map(len, ids))
        return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in ids])

    @functools.cached_property
    def _tokenizer(self) -> "Tokenizer":
        return word_pieces({token: number for number, token in enumerate(self.vocabulary)})

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Return each caption's log-likelihood, float32 [N], averaged over its tokens, each given the image and the tokens before it.

        Images are [N, C, R, R] in [-1, 1], or pooled ones, or latents; tokens [N, L] come from `tokenize`.
        """
        features = self.trunk(avg_pool_to(images, self.side))
        image = self.project(self.norm_features(to_sequence(features))) + self.positions  # [N, P, D]
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        length = inputs.shape[1]
        causal_mask = torch.ones(1, length, length, dtype=torch.bool, device=tokens.device).tril()
        x = self.embedding(inputs) + self.token_positions[:length]
        for layer in self.layers:
            x = layer(x, image, causal_mask)
        logits = self.to_logits(self.norm_output(x)).float()  # [N, L - 1, V]
        log_likelihood = -F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="none").view(targets.shape)
        return log_likelihood.sum(dim=1) / (targets != PAD).sum(dim=1)


def coordinates(side: int) -> Tensor:
    """Return six smooth functions of the positions of a map, [side * side, 6], from which left and right can be read off at the start.

    At half this amplitude, the captioner took twice as long to learn which of two objects is left, and some seeds did not learn it.
    """
    line = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y, x * y, (math.pi * x).cos(), (math.pi * y).cos(), torch.ones_like(x)], dim=-1).flatten(0, 1)
