"""Adversarial losses as pure functions of logits; a positive logit means real, and matching its caption. Shapes are [N] throughout.

- relativistic: R3GAN, Huang et al. 2025, arXiv 2501.05441 (after Jolicoeur-Martineau 2018, arXiv 1807.00734)
- non_saturating: Goodfellow et al. 2014, arXiv 1406.2661
- hinge: Lim & Ye 2017, arXiv 1705.02894
- the matching-aware term, real pictures with another item's caption as negatives: Reed et al. 2016, arXiv 1605.05396
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """The three per-item terms of one kind of loss; real, fake and mismatched logits of a pair share their picture's caption batch."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # (real, fake) -> [N]
    generator: Callable[[Tensor, Tensor], Tensor]  # (real, fake) -> [N]
    mismatch: Callable[[Tensor, Tensor], Tensor]  # (real, mismatched) -> [N]


LOSSES = {
    "relativistic": AdversarialLoss(
        discriminator=lambda real, fake: F.softplus(fake - real),
        generator=lambda real, fake: F.softplus(real - fake),
        mismatch=lambda real, mismatched: F.softplus(mismatched - real),
    ),
    "non_saturating": AdversarialLoss(
        discriminator=lambda real, fake: F.softplus(-real) + F.softplus(fake),
        generator=lambda real, fake: F.softplus(-fake),
        mismatch=lambda real, mismatched: F.softplus(mismatched),
    ),
    "hinge": AdversarialLoss(
        discriminator=lambda real, fake: F.relu(1 - real) + F.relu(1 + fake),
        generator=lambda real, fake: -fake,
        mismatch=lambda real, mismatched: F.relu(1 + mismatched),
    ),
}


def mismatch_weights(different: Tensor) -> Tensor:
    """Weights of pictures held against other captions: 0 where `different` (bool, any shape) says it is one of the picture's own, the
    others alike and with a mean of 1."""
    return different * (different.numel() / different.sum().clamp(min=1))
