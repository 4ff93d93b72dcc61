"""Word alignment: a score for how well the words of a caption are found in a feature map.

Each word attends to the positions of the map, and the result is compared with the word itself (the word-region alignment of AttnGAN's
DAMSM, Xu et al. 2018, arXiv 1711.10485, here one term of a logit). Keys and values depend on the image alone and serve all its captions.
n images, k captions each, C channels, P positions, L tokens, D width of the text head.
"""

import math

import torch
from torch import Tensor, nn

from gan_t2i.models.text_head import TextCondition
from gan_t2i.ops.attention import attend
from gan_t2i.ops.layers import linear, to_sequence


class WordAlignment(nn.Module):
    """Scores how well the words of captions are found at the positions of a feature map.

    Args:
        channels: C of the map.
        positions: P = height times width of the map.
        width: D of the text head.
        heads: parallel attentions; divides the width.
    """

    def __init__(self, channels: int, positions: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.positions = nn.Parameter(torch.randn(positions, channels) * 0.1)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(channels, width, bias=False)
        self.to_value = nn.Linear(channels, width, bias=False)
        self.to_found = linear(width, width)

    def forward(self, features: Tensor, text: TextCondition) -> Tensor:
        """Features [n, C, H, W] and n * k captions, grouped by image -> scores [n * k] float32."""
        regions = self.norm(to_sequence(features)) + self.positions  # [n, P, C]
        # the words of all captions of an image form one sequence, so that its keys and values are computed once
        queries = self.to_query(text.words).unflatten(0, (len(features), -1)).flatten(1, 2)  # [n, k L, D]
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (queries, self.to_key(regions), self.to_value(regions))
        )  # [n, heads, *, D / heads]
        attended = self.to_found(attend(query, key, value).transpose(1, 2).flatten(2)).float().reshape(text.words.shape)
        scores = (attended * text.words.float()).sum(dim=2) / math.sqrt(attended.shape[2])  # [n k, L]
        return (scores * text.mask).sum(dim=1) / text.mask.sum(dim=1).sqrt()
