"""Projection of the sentence onto image features (Miyato & Koyama 2018, arXiv 1802.05637)."""

import math

import torch
from torch import Tensor, nn

from gan_t2i.models.text_head import TextCondition
from gan_t2i.ops.layers import linear


def projection_logits(match: Tensor, realism: Tensor, sentence: Tensor) -> Tensor:
    """Return realism + <match, sentence> / sqrt(D) for every caption: match [n, D] and realism [n, 1] of n images, and sentence vectors
    [n * k, D], grouped by image -> logits [n * k] float32."""
    per_image = torch.cat([match, realism], dim=1).float().repeat_interleave(len(sentence) // len(match), dim=0)
    return per_image[:, -1] + (per_image[:, :-1] * sentence.float()).sum(dim=1) / math.sqrt(match.shape[1])


class ProjectionHead(nn.Module):
    """Maps features [n, D] and n * k captions, grouped by image, to logits [n * k]: realism plus match."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.realism = linear(width, 1)
        self.match = linear(width, width)

    def forward(self, features: Tensor, text: TextCondition) -> Tensor:
        return projection_logits(self.match(features), self.realism(features), text.sentence)
