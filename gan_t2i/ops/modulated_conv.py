"""Convolution modulated by a style (StyleGAN2, arXiv 1912.04958, section 2.2). N batch, I and O channels, W style width.

The style scales the input and demodulation scales the output. This equals scaling the weights for each image, but needs no grouped
convolution and no copy of the weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.runtime import autocast_off
from gan_t2i.ops.layers import linear
from gan_t2i.ops.resample import upsample_to


class Style(nn.Module):
    """Maps w to one scale per channel, initially about 1. With `second_order` it is s = m1 * m2 + m3 (StyleGAN-T, arXiv 2301.09515, eq. 1)."""

    def __init__(self, w_width: int, channels: int, *, second_order: bool) -> None:
        super().__init__()
        # With weights that start at zero, G learned nothing but backgrounds: the style has to reach the image from the first step.
        self.affine = linear(w_width, channels, bias=1.0)
        self.factors = linear(w_width, 2 * channels) if second_order else None

    def forward(self, w: Tensor) -> Tensor:
        """w [N, W] or a map [N, W, h, h] -> scales [N, channels] or [N, channels, h, h]."""
        w = w.movedim(1, -1)
        scale = self.affine(w)
        if self.factors is not None:
            m1, m2 = self.factors(w).chunk(2, dim=-1)
            scale = scale + m1 * m2
        return scale.movedim(-1, 1)


class ModulatedConv(nn.Module):
    """Same-size convolution whose input channels are scaled by a style, with demodulation to unit variance, and a bias.

    With a map of styles (spatially adaptive modulation: SPADE, Park et al. 2019, arXiv 1903.07291; from text: SSA-GAN, Liao et al. 2022, arXiv
    2104.00567), demodulation uses their mean power over the image.

    Args:
        inputs, outputs: I, O.
        size: side of the kernel.
        w_width: W.
        demodulate: divide each output channel by the norm of its modulated weights; toRGB layers do not.
        second_order: see `Style`.
        smooth: interpolate a map of styles; without it each style covers a square.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        w_width: int,
        demodulate: bool = True,
        second_order: bool = False,
        smooth: bool = False,
    ) -> None:
        super().__init__()
        self.smooth = smooth
        self.style = Style(w_width, inputs, second_order=second_order)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size) / math.sqrt(inputs * size**2))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.demodulate = demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [N, I, H, H], w [N, W] or a map of it [N, W, h, h] with h <= H -> [N, O, H, H]."""
        scale = self.style(w)
        scale = scale[:, :, None, None] if scale.ndim == 2 else scale  # [N, I, h, h]
        scale_at_x = upsample_to(scale, x.shape[-1], smooth=self.smooth) if scale.shape[-1] > 1 else scale
        y = F.conv2d(x * scale_at_x.to(x.dtype), self.weight, padding=self.weight.shape[-1] // 2)
        if self.demodulate:
            with autocast_off(x.device):
                power = scale.float().square().mean(dim=(2, 3)) @ self.weight.square().sum(dim=(2, 3)).T  # [N, O]
                demodulation = (power + 1e-8).rsqrt()
            y = y * demodulation[:, :, None, None].to(y.dtype)
        return y + self.bias[:, None, None].to(y.dtype)

    def extra_repr(self) -> str:
        outputs, inputs, size, _ = self.weight.shape
        return f"{inputs}, {outputs}, size={size}, demodulate={self.demodulate}"
