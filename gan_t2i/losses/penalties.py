"""Penalties on the slope of the discriminator, as pure functions that give one value a picture [N].

R1 and R2 are the same function at real and at drawn pictures (Mescheder et al. 2018, arXiv 1801.04406; both in R3GAN, arXiv 2501.05441);
the finite-difference form needs no double backward (GAT, 2026). Call them with autocast off: squared gradients need float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Critic = Callable[[Tensor], Tensor]  # images [N, 3, H, W] -> logits [N]


def gradient_penalty(critic: Critic, images: Tensor) -> Tensor:
    """|grad_x D(x)|^2 of each picture, [N]. Logits of different pictures must not depend on each other."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def finite_difference_penalty(critic: Critic, images: Tensor, noise: Tensor, step: float) -> Tensor:
    """((D(x) - D(x + step e)) / step)^2 of each picture, [N]; over e ~ N(0, 1) its mean is |grad_x D(x)|^2 for small steps."""
    images = images.detach()
    return ((critic(images) - critic(images + step * noise)) / step).square()
