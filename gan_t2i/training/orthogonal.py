"""Orthogonalized gradients: every direction of a weight matrix gets a step of the same length.

The gradient of a matrix is nearly of low rank, so Adam moves a few of its directions over and over. Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/) replaces U S V^T by U V^T with a few matrix products and no decomposition; AdaMuon (arXiv
2507.11005) lets Adam's second moment scale the result. This is AdaMuon without momentum, which GANs do without.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# A quintic that raises singular values towards 1 and keeps them there; the coefficients are Muon's. Muon's five rounds gave nothing more.
COEFFICIENTS = (3.4445, -4.775, 2.0315)
ROUNDS = 3
# Matrices so many times as wide as high are orthogonalized by way of their square, which took half the time of the rounds on a CPU.
WIDE = 4
# Thinner matrices, such as those of toRGB layers, are left alone.
MIN_SIDE = 16


def orthogonalize(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a float32 matrix [m, n] with the singular vectors of `x` [m, n] and singular values near 1, computed in `dtype`.

    Singular values below about a fiftieth of the matrix's norm stay smaller.
    """
    tall = x.shape[0] > x.shape[1]
    y = (x.T if tall else x).to(dtype)
    y = y / (y.norm() + 1e-12)
    y = _by_square(y) if y.shape[1] >= WIDE * y.shape[0] else _by_rounds(y)
    return (y.T if tall else y).float()


def _by_rounds(y: Tensor) -> Tensor:
    """Orthogonalize y [m, n] round by round."""
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        squared = y @ y.T
        y = torch.addmm(y, torch.addmm(squared, squared, squared, beta=b, alpha=c), y, beta=a)  # a y + (b s + c s s) y, each rounded once
    return y


def _by_square(y: Tensor) -> Tensor:
    """Compute the same from y y^T [m, m] alone, in float32: each round is a polynomial of it, so the long side is multiplied only twice."""
    squared = (y @ y.T).float()
    product = polynomial = _polynomial(squared)
    for _ in range(ROUNDS - 1):
        squared = polynomial @ squared @ polynomial
        polynomial = _polynomial(squared)
        product = polynomial @ product
    return product.to(y.dtype) @ y


def _polynomial(squared: Tensor) -> Tensor:
    """Return a + b s + c s^2 of s [m, m], by which a round multiplies y."""
    a, b, c = COEFFICIENTS
    result = torch.addmm(squared, squared, squared, beta=b, alpha=c)
    result.diagonal().add_(a)
    return result


@torch.no_grad()
def orthogonalize_gradients(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Orthogonalize the gradient of every matrix and of every kernel, read as a matrix [outputs, rest], in place."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.ndim > 1 and min(len(parameter), parameter[0].numel()) >= MIN_SIDE:
            parameter.grad.copy_(orthogonalize(parameter.grad.flatten(1), dtype).view(parameter.shape))
