"""Orthogonalized gradients: every direction of a weight matrix gets a step of the same length.

The gradient of a matrix is nearly of low rank, so Adam moves a few of its directions over and over. Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/) replaces U S V^T by U V^T with a few matrix products and no decomposition; AdaMuon (arXiv
2507.11005) lets Adam's second moment scale the result. This is AdaMuon without momentum, which GANs do without.
"""

from collections import defaultdict
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
    """Return float32 matrices [k, m, n] with the singular vectors of `x` [k, m, n] and singular values near 1, computed in `dtype`.

    Singular values below about a fiftieth of a matrix's norm stay smaller.
    """
    tall = x.shape[1] > x.shape[2]
    y = (x.mT if tall else x).to(dtype)
    y = y / (torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True) + 1e-12)
    y = _by_square(y) if y.shape[2] >= WIDE * y.shape[1] else _by_rounds(y)
    return (y.mT if tall else y).float()


def _by_rounds(y: Tensor) -> Tensor:
    """Orthogonalize y [k, m, n] round by round."""
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        squared = y @ y.mT
        # a y + (b s + c s s) y, each rounded once
        y = torch.baddbmm(y, torch.baddbmm(squared, squared, squared, beta=b, alpha=c), y, beta=a)
    return y


def _by_square(y: Tensor) -> Tensor:
    """Compute the same from y y^T [k, m, m] alone, in float32: each round is a polynomial of it, so the long side is multiplied only twice."""
    squared = (y @ y.mT).float()
    product = polynomial = _polynomial(squared)
    for _ in range(ROUNDS - 1):
        squared = polynomial @ squared @ polynomial
        polynomial = _polynomial(squared)
        product = polynomial @ product
    return product.to(y.dtype) @ y


def _polynomial(squared: Tensor) -> Tensor:
    """Return a + b s + c s^2 of s [k, m, m], by which a round multiplies y."""
    a, b, c = COEFFICIENTS
    result = torch.baddbmm(squared, squared, squared, beta=b, alpha=c)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result


@torch.no_grad()
def orthogonalize_gradients(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Orthogonalize, in place, the gradients of matrices and of kernels, read as matrices [outputs, rest]; those of one shape at once."""
    alike = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is None or parameter.ndim < 2:
            continue
        shape = len(parameter), parameter.numel() // len(parameter)
        if min(shape) >= MIN_SIDE:
            alike[shape].append(parameter.grad)
    for gradients in alike.values():
        results = orthogonalize(torch.stack([gradient.flatten(1) for gradient in gradients]), dtype)
        torch._foreach_copy_(gradients, [result.view_as(gradient) for gradient, result in zip(gradients, results, strict=True)])
