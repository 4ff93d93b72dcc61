"""Resampling by a factor of two with the filter [1, 2, 1], as in R3GAN (arXiv 2501.05441). Both directions align pixel 2i with pixel i."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_t2i.core.runtime import autocast_off


def avg_pool_to(x: Tensor, side: int) -> Tensor:
    """Average-pool [N, C, R, R] to [N, C, side, side]; an input with R <= `side` is returned as it is."""
    factor = x.shape[-1] // side
    return F.avg_pool2d(x, factor) if factor > 1 else x


def upsample(x: Tensor) -> Tensor:
    """Interpolate [N, C, H, W] linearly to [N, C, 2H, 2W]; a constant image stays constant, up to its edges."""
    height, width = x.shape[2:]
    # Zero insertion followed by [1, 2, 1] is linear interpolation, which torch's own kernel computes on 2H - 1 points with aligned corners.
    # On CPUs in channels_last, forward and backward take a fifth of the time of a depthwise transposed convolution.
    with autocast_off(x.device):  # autocast would compute in float32, which moves twice the bytes for the same result
        y = F.interpolate(x, size=(2 * height - 1, 2 * width - 1), mode="bilinear", align_corners=True)
        return F.pad(y, (0, 1, 0, 1), mode="replicate")


def upsample_to(x: Tensor, side: int, *, smooth: bool) -> Tensor:
    """Upsample [N, C, h, h] by a power of two to [N, C, side, side]: linearly if `smooth`, otherwise to the nearest value."""
    if not smooth:
        return F.interpolate(x, size=(side, side)) if x.shape[-1] < side else x
    while x.shape[-1] < side:
        x = upsample(x)
    return x


def downsample(x: Tensor) -> Tensor:
    """Low-pass filter [N, C, 2H, 2W] and halve it to [N, C, H, W]; a constant image stays constant, up to its edges."""
    return _Downsample.apply(x)


class _Downsample(torch.autograd.Function):
    """Linear map whose backward is its adjoint, and vice versa. The custom backward avoids the unused gradient of the constant kernel, which
    the double backward of a convolution computes anyway: it took most of a gradient penalty's time here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with autocast_off(x.device):  # on CPUs, depthwise convolutions in bfloat16 are ten times slower than in float32
            padded = F.pad(x.float(), (1, 0, 1, 0), mode="replicate")
            y = F.conv2d(padded, _kernel(x.device).expand(x.shape[1], 1, 3, 3), stride=2, groups=x.shape[1])
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> Tensor:
        return _Adjoint.apply(y)


class _Adjoint(torch.autograd.Function):
    """Adjoint of `downsample`: [N, C, H, W] -> [N, C, 2H, 2W]."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        with autocast_off(y.device):
            padded = F.conv_transpose2d(y.float(), _kernel(y.device).expand(y.shape[1], 1, 3, 3), stride=2, groups=y.shape[1])
        padded[:, :, 1] += padded[:, :, 0]  # gradient of the replicated edge
        padded[:, :, :, 1] += padded[:, :, :, 0]
        return padded[:, :, 1:, 1:].to(y.dtype)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> Tensor:
        return _Downsample.apply(x)


@functools.lru_cache
@torch.inference_mode(False)  # a tensor made under inference_mode could never be used in training
def _kernel(device: torch.device) -> Tensor:
    # cached, because creating one on a GPU synchronises with it
    taps = torch.tensor([1.0, 2.0, 1.0], device=device)
    return torch.outer(taps, taps) / 16
