"""Adversarial losses as pure functions of logits; a positive logit means real, and matching its caption. N items, K negative captions.

- relativistic: R3GAN, Huang et al. 2025, arXiv 2501.05441 (after Jolicoeur-Martineau 2018, arXiv 1807.00734)
- non_saturating: Goodfellow et al. 2014, arXiv 1406.2661
- hinge: Lim & Ye 2017, arXiv 1705.02894
- the matching-aware term, real images with other items' captions as negatives: Reed et al. 2016, arXiv 1605.05396; its relativistic form
  with several negatives is the contrastive loss of van den Oord et al. 2018, arXiv 1807.03748, and with one the relativistic loss itself
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """The three per-item terms of one kind of loss. `negative_mask` (bool) marks the captions that count; an item without any gets 0."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # (real [N], fake [N]) -> [N]
    generator: Callable[[Tensor, Tensor], Tensor]  # (real [N], fake [N]) -> [N]
    mismatch: Callable[[Tensor, Tensor, Tensor], Tensor]  # (real [N], mismatched [N, K], negative_mask [N, K]) -> [N]


def contrast(real: Tensor, mismatched: Tensor, negative_mask: Tensor) -> Tensor:
    """Compute log(1 + sum exp(mismatched - real)) over the true negatives, [N]: the hardest weigh most."""
    gaps = (mismatched - real[:, None]).masked_fill(~negative_mask, float("-inf"))
    return torch.cat([torch.zeros_like(real)[:, None], gaps], dim=1).logsumexp(dim=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average `values` [N, K] over the True entries of each row of `mask`, [N]; 0 where a row has none."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


LOSSES = {
    "relativistic": AdversarialLoss(
        discriminator=lambda real, fake: F.softplus(fake - real),
        generator=lambda real, fake: F.softplus(real - fake),
        mismatch=contrast,
    ),
    "non_saturating": AdversarialLoss(
        discriminator=lambda real, fake: F.softplus(-real) + F.softplus(fake),
        generator=lambda real, fake: F.softplus(-fake),
        mismatch=lambda real, mismatched, mask: masked_mean(F.softplus(mismatched), mask),
    ),
    "hinge": AdversarialLoss(
        discriminator=lambda real, fake: F.relu(1 - real) + F.relu(1 + fake),
        generator=lambda real, fake: -fake,
        mismatch=lambda real, mismatched, mask: masked_mean(F.relu(1 + mismatched), mask),
    ),
}
