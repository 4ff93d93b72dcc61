"""Penalties on the slope of the discriminator.

R1 and R2 are the same function at real and at generated images (Mescheder et al. 2018, arXiv 1801.04406; both in R3GAN, arXiv 2501.05441);
the finite-difference form needs no double backward (GAT, 2026). Squared gradients need float32, so autocast is off here. N images.
configs/README.md says what a step with penalties costs.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from gan_t2i.core.config import Count, NonNegative, Positive, Share, StrictConfig
from gan_t2i.core.phases import phase
from gan_t2i.core.runtime import autocast_off
from gan_t2i.models.base import Discriminator
from gan_t2i.models.text_head import TextCondition
from gan_t2i.ops.checkpointing import no_checkpointing

Critic = Callable[[Tensor], Tensor]  # images [N, 3, H, W] -> logits [N]


class PenaltyConfig(StrictConfig):
    """Penalty on D's squared slope at real (R1) and at generated images (R2). With both gammas at 0 nothing is computed."""

    name: Literal["gradient", "finite_difference"] = "gradient"
    r1_gamma: NonNegative = 1.0
    r2_gamma: NonNegative = 1.0
    interval: Count = 4
    """Steps from one penalty to the next; the weight is multiplied by it, so that the mean pull stays the same."""
    fraction: Share = 0.5
    """Share of the batch that is penalised."""
    step: Positive = 0.01
    """Step of the finite difference; the range of a pixel is 2."""

    def is_due(self, step: int) -> bool:
        """True if the step of that number includes the penalty."""
        return self.r1_gamma + self.r2_gamma > 0 and step % self.interval == 0

    def count(self, n: int) -> int:
        """Return how many of n images are penalised."""
        return max(1, round(n * self.fraction))


@phase("penalty")
def slope_penalty(
    config: PenaltyConfig, D: Discriminator, real: Tensor, fake: Tensor, condition: TextCondition, offsets: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return gamma / 2 times D's mean squared slope at real plus at generated images, a scalar, and both slopes as metrics.

    Args:
        config: gammas, share and form.
        D: the discriminator.
        real: augmented real images [N, 3, R, R].
        fake: augmented generated images [N, 3, R, R].
        condition: captions of the N images, as D reads them.
        offsets: directions of the finite difference, normal noise [2, count, 3, R, R]; None for the gradient.
    """
    count = config.count(len(real))
    images = torch.cat([real[:count], fake[:count]]).detach().float()
    twice = torch.arange(count, device=real.device).repeat(2)
    with autocast_off(real.device):
        text = condition.float()[twice]
        if offsets is None:
            with no_checkpointing(D):  # the graph of a gradient holds every activation anyhow
                slopes = gradient_penalty(lambda x: D(x, text), images)
        else:
            slopes = finite_difference_penalty(lambda x: D(x, text), images, offsets.flatten(0, 1), config.step)
    r1, r2 = slopes[:count].mean(), slopes[count:].mean()
    return (config.r1_gamma * r1 + config.r2_gamma * r2) / 2, {"Loss/r1_penalty": r1.detach(), "Loss/r2_penalty": r2.detach()}


def gradient_penalty(critic: Critic, images: Tensor) -> Tensor:
    """Return |grad_x D(x)|^2 of each image, [N]. Logits of different images must not depend on each other."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def finite_difference_penalty(critic: Critic, images: Tensor, noise: Tensor, step: float) -> Tensor:
    """Return ((D(x) - D(x + step e)) / step)^2 of each image, [N]; over e ~ N(0, 1) its mean is |grad_x D(x)|^2 for small steps."""
    images = images.detach()
    return ((critic(images) - critic(images + step * noise)) / step).square()
