"""Gaussian blur, with the double backward that gradient penalties need. N batch, C channels, H x W pixels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_t2i.core.runtime import autocast_off


def blur(images: Tensor, sigma: float) -> Tensor:
    """Pictures [N, C, H, W], each pixel the mean of its neighbourhood with standard deviation `sigma` pixels; edges are repeated."""
    if not sigma:
        return images
    reach = min(math.ceil(3 * sigma), *(side - 1 for side in images.shape[2:]))
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)  # [C, 1, 1, taps]
    with autocast_off(images.device):  # as in resample.py: depthwise convolutions in bfloat16 are slow on CPUs
        padded = F.pad(images.float(), (reach, reach, reach, reach), mode="replicate")
        rows = F.conv2d(padded, kernel, groups=len(kernel))
        return F.conv2d(rows, kernel.transpose(2, 3), groups=len(kernel)).to(images.dtype)
