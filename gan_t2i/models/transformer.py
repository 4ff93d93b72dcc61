"""Parts of the transformer pair: patches of a map as tokens. N batch, C channels, R side, p side of a patch, P = (R / p)^2 patches, D width."""

import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.errors import UsageError
from gan_t2i.ops.layers import activate, linear


def check_patch(patch: int, resolution: int, where: str) -> None:
    """Raise `UsageError` unless patches of this side tile a map of this resolution."""
    if resolution % patch:
        raise UsageError(f"{where}.params.patch = {patch} does not divide the {resolution} positions of a side")


def to_patches(x: Tensor, patch: int) -> Tensor:
    """Cut maps [N, C, R, R] into patches [N, P, C p p]."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def from_patches(x: Tensor, patch: int, resolution: int) -> Tensor:
    """Lay patches [N, P, C p p] out as maps [N, C, R, R]."""
    side = resolution // patch
    return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (side, side)), patch)


class Mlp(nn.Module):
    """A two-layer perceptron on each token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widen, self.narrow = linear(width, 4 * width), linear(4 * width, width, gain=0.2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, P, D] -> [N, P, D]."""
        return self.narrow(activate(self.widen(x)))
