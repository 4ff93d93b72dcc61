"""Resampling by two with the filter [1, 2, 1], as in R3GAN (arXiv 2501.05441). Both directions keep pixel 2i over pixel i.

The depthwise convolutions run in float32: on CPUs their bfloat16 kernels are ten times slower, and they cost next to nothing.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_t2i.runtime import full_precision


@functools.lru_cache
@torch.inference_mode(False)  # a tensor made under inference_mode could never serve in training
def _kernel(device: torch.device, total: float) -> Tensor:
    # kept, because making one on a GPU waits for it
    taps = torch.tensor([1.0, 2.0, 1.0], device=device)
    return torch.outer(taps, taps) * (total / 16)


def _filter(x: Tensor, total: float) -> Tensor:
    return _kernel(x.device, total).expand(x.shape[1], 1, 3, 3)


def upsample(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W] by linear interpolation; a constant picture stays constant, up to its edges."""
    with full_precision(x.device):
        padded = F.pad(x.float(), (0, 1, 0, 1), mode="replicate")
        y = F.conv_transpose2d(padded, _filter(x, 4), stride=2, padding=1, groups=x.shape[1])
    return y[..., :-1, :-1].to(x.dtype)


def downsample(x: Tensor) -> Tensor:
    """[N, C, 2H, 2W] -> [N, C, H, W], low-pass filtered; a constant picture stays constant, up to its edges."""
    with full_precision(x.device):
        padded = F.pad(x.float(), (1, 0, 1, 0), mode="replicate")
        y = F.conv2d(padded, _filter(x, 1), stride=2, groups=x.shape[1])
    return y.to(x.dtype)
