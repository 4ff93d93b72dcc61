"""Adversarial losses as pure functions of logits; a positive logit means real, and matching its caption. Shapes are [N] throughout.

- relativistic: R3GAN, Huang et al. 2025, arXiv 2501.05441 (after Jolicoeur-Martineau 2018, arXiv 1807.00734)
- non_saturating: Goodfellow et al. 2014, arXiv 1406.2661
- hinge: Lim & Ye 2017, arXiv 1705.02894
- the matching-aware term, real pictures with other items' captions as negatives: Reed et al. 2016, arXiv 1605.05396; its relativistic form
  with several negatives is the contrastive loss of van den Oord et al. 2018, arXiv 1807.03748, and with one the relativistic loss itself
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """The three per-item terms of one kind of loss. Mismatched logits are of K other captions, `wrong` (bool) says which of them count; an
    item without any is 0."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # (real, fake) -> [N]
    generator: Callable[[Tensor, Tensor], Tensor]  # (real, fake) -> [N]
    mismatch: Callable[[Tensor, Tensor, Tensor], Tensor]  # (real [N], mismatched [N, K], wrong [N, K]) -> [N]


def contrast(real: Tensor, mismatched: Tensor, wrong: Tensor) -> Tensor:
    """log(1 + sum of exp(mismatched - real)) over those that are wrong, [N]: the hardest ones weigh most."""
    gaps = (mismatched - real[:, None]).masked_fill(~wrong, float("-inf"))
    return torch.cat([torch.zeros_like(real)[:, None], gaps], dim=1).logsumexp(dim=1)


def mean_over(terms: Tensor, wrong: Tensor) -> Tensor:
    """Means [N] of the terms [N, K] that are wrong."""
    return (terms * wrong).sum(dim=1) / wrong.sum(dim=1).clamp(min=1)


LOSSES = {
    "relativistic": AdversarialLoss(
        discriminator=lambda real, fake: F.softplus(fake - real),
        generator=lambda real, fake: F.softplus(real - fake),
        mismatch=lambda real, mismatched, wrong: contrast(real, mismatched, wrong),
    ),
    "non_saturating": AdversarialLoss(
        discriminator=lambda real, fake: F.softplus(-real) + F.softplus(fake),
        generator=lambda real, fake: F.softplus(-fake),
        mismatch=lambda real, mismatched, wrong: mean_over(F.softplus(mismatched), wrong),
    ),
    "hinge": AdversarialLoss(
        discriminator=lambda real, fake: F.relu(1 - real) + F.relu(1 + fake),
        generator=lambda real, fake: -fake,
        mismatch=lambda real, mismatched, wrong: mean_over(F.relu(1 + mismatched), wrong),
    ),
}


def mismatch_weights(different: Tensor) -> Tensor:
    """Weights [N] of pictures held against other captions: 0 where `different` (bool [N]) says none of those is wrong, the others alike and
    with a mean of 1."""
    return different * (len(different) / different.sum().clamp(min=1))
