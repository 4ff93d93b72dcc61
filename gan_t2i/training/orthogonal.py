"""Steps in which every direction of a weight matrix moves alike: gradients are made orthogonal before Adam reads them.

The gradient of a matrix is nearly of low rank, so that Adam moves a few directions of it over and over. Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/) puts U V^T in place of U S V^T, by a few products of matrices and no decomposition; AdaMuon
(arXiv 2507.11005) lets Adam's second moment scale the result. This is the latter without momentum, which GANs do without.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# A quintic that raises singular values towards 1, and keeps them there; its coefficients are Muon's. Muon's five rounds taught no more.
COEFFICIENTS = (3.4445, -4.775, 2.0315)
ROUNDS = 3
# Thinner matrices, such as those that make colours, are left as they are.
LEAST_SIDE = 16


def orthogonalize(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix [m, n] -> one of the same singular vectors [m, n] float32 whose singular values are near 1, but for those that were less than
    about a fiftieth of the matrix's norm; computed in `dtype`."""
    a, b, c = COEFFICIENTS
    tall = x.shape[0] > x.shape[1]
    y = (x.T if tall else x).to(dtype)
    y = y / (y.norm() + 1e-12)
    for _ in range(ROUNDS):
        squared = y @ y.T
        y = torch.addmm(y, torch.addmm(squared, squared, squared, beta=b, alpha=c), y, beta=a)  # a y + (b s + c s s) y, each rounded once
    return (y.T if tall else y).float()


@torch.no_grad()
def orthogonalize_gradients(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Orthogonalize the gradient of every matrix, and of every kernel, read as a matrix [outputs, the rest]."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.ndim > 1 and min(len(parameter), parameter[0].numel()) >= LEAST_SIDE:
            parameter.grad.copy_(orthogonalize(parameter.grad.flatten(1), dtype).view(parameter.shape))
