"""Resampling by two with the filter [1, 2, 1], as in R3GAN (arXiv 2501.05441). Both directions keep pixel 2i over pixel i."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_t2i.core.runtime import autocast_off


def avg_pool_to(x: Tensor, side: int) -> Tensor:
    """[N, C, R, R] -> [N, C, side, side] by the mean of each square; as it is where R is no more than that."""
    factor = x.shape[-1] // side
    return F.avg_pool2d(x, factor) if factor > 1 else x


def upsample(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W] by linear interpolation; a constant picture stays constant, up to its edges."""
    height, width = x.shape[2:]
    # [1, 2, 1] between zeros is linear interpolation, and on 2H - 1 points with aligned corners that is torch's own kernel. On CPUs in
    # channels_last, forward and backward take a fifth of a depthwise transposed convolution's time.
    with autocast_off(x.device):  # autocast would make it float32, which moves twice the bytes for the same result
        y = F.interpolate(x, size=(2 * height - 1, 2 * width - 1), mode="bilinear", align_corners=True)
        return F.pad(y, (0, 1, 0, 1), mode="replicate")


def upsample_to(x: Tensor, side: int, *, smooth: bool) -> Tensor:
    """[N, C, h, h] -> [N, C, side, side], a power of two times as large: each place covers a square, or goes over into the next."""
    if not smooth:
        return F.interpolate(x, size=(side, side)) if x.shape[-1] < side else x
    while x.shape[-1] < side:
        x = upsample(x)
    return x


def downsample(x: Tensor) -> Tensor:
    """[N, C, 2H, 2W] -> [N, C, H, W], low-pass filtered; a constant picture stays constant, up to its edges."""
    return _Downsample.apply(x)


class _Downsample(torch.autograd.Function):
    """The linear map and its adjoint are each other's derivatives. Told so, autograd leaves out the gradient of the constant kernel, which a
    convolution's double backward computes even where nobody asks: most of the time that a penalty spent here."""

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
    """[N, C, H, W] -> [N, C, 2H, 2W]."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        with autocast_off(y.device):
            padded = F.conv_transpose2d(y.float(), _kernel(y.device).expand(y.shape[1], 1, 3, 3), stride=2, groups=y.shape[1])
        padded[:, :, 1] += padded[:, :, 0]  # what was replicated
        padded[:, :, :, 1] += padded[:, :, :, 0]
        return padded[:, :, 1:, 1:].to(y.dtype)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> Tensor:
        return _Downsample.apply(x)


@functools.lru_cache
@torch.inference_mode(False)  # a tensor made under inference_mode could never serve in training
def _kernel(device: torch.device) -> Tensor:
    # kept, because making one on a GPU waits for it
    taps = torch.tensor([1.0, 2.0, 1.0], device=device)
    return torch.outer(taps, taps) / 16
