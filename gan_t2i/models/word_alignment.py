"""How well the words of a caption are found in a feature map: each word looks for its own place.

A word attends to the places of the map, and what it finds there is held against the word itself (the word-region alignment of AttnGAN's
DAMSM, Xu et al. 2018, arXiv 1711.10485, here as a part of a logit). What is made of the picture is made once for all its captions.
n pictures, k captions each, C channels, P places, L tokens, D width of the text head.
"""

import math

import torch
from torch import Tensor, nn

from gan_t2i.models.text_head import TextCondition
from gan_t2i.ops.attention import attend
from gan_t2i.ops.layers import linear, to_sequence


class WordAlignment(nn.Module):
    """How well the words of captions are found at the places of a feature map.

    Args:
        channels: C of the map.
        places: P = height times width of the map.
        width: D of the text head.
        heads: parallel attentions; divides the width.
    """

    def __init__(self, channels: int, places: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.positions = nn.Parameter(torch.randn(places, channels) * 0.1)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(channels, width, bias=False)
        self.to_value = nn.Linear(channels, width, bias=False)
        self.to_found = linear(width, width)

    def forward(self, features: Tensor, text: TextCondition) -> Tensor:
        """features [n, C, H, W] and n * k captions, those of a picture in a row -> scores [n * k] float32."""
        places = self.norm(to_sequence(features)) + self.positions  # [n, P, C]
        # the words of all captions of a picture stand in one sequence, so that its keys and values are made once
        queries = self.to_query(text.words).unflatten(0, (len(features), -1)).flatten(1, 2)  # [n, k L, D]
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (queries, self.to_key(places), self.to_value(places))
        )  # [n, heads, *, D / heads]
        found = self.to_found(attend(query, key, value).transpose(1, 2).flatten(2)).float().reshape(text.words.shape)
        scores = (found * text.words.float()).sum(dim=2) / math.sqrt(found.shape[2])  # [n k, L]
        return (scores * text.mask).sum(dim=1) / text.mask.sum(dim=1).sqrt()
