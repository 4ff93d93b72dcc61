"""Layers that the networks share. Initial weights have standard deviation gain / sqrt(fan_in), biases are zero, activations keep the scale."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.errors import UsageError


def activate(x: Tensor) -> Tensor:
    """Apply a leaky ReLU with slope 0.2, scaled so that a standard normal input keeps its second moment."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2 / (1 + 0.2**2))


def linear(inputs: int, outputs: int, *, gain: float = 1.0, bias: float = 0.0) -> nn.Linear:
    """Return a fully connected layer with normal initial weights, of standard deviation gain / sqrt(inputs), and a constant initial bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs))
    nn.init.constant_(layer.bias, bias)
    return layer


def conv(inputs: int, outputs: int, size: int, *, gain: float = 1.0) -> nn.Conv2d:
    """Return a same-size convolution with normal initial weights, of standard deviation gain / sqrt(fan_in), and zero bias."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs * size**2))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Return the width of the feature maps at `resolution`: channel_base / resolution, at most channel_max; raises `UsageError` if it is 0."""
    if channel_base < resolution:
        raise UsageError(f"channel_base = {channel_base}: no channel is left at {resolution} px; it must be at least the resolution")
    return min(channel_base // resolution, channel_max)


def to_sequence(x: Tensor) -> Tensor:
    """Flatten a feature map [N, C, H, W] to a sequence [N, HW, C]."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, like: Tensor) -> Tensor:
    """Reshape a sequence [N, HW, C] to a feature map [N, C, H, W] of the size of `like`."""
    return x.transpose(1, 2).unflatten(2, like.shape[2:])
