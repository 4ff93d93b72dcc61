"""Convolution whose kernel is chosen for each item (GigaGAN, arXiv 2303.05511, section 3.1). N batch, B kernels of a bank, I and O
channels, W style width.

The kernel of an item is K = sum_b softmax(A w + a)_b K_b, modulated and demodulated as in StyleGAN2 (arXiv 1912.04958). A convolution is
linear in its kernel, so the input is scaled once for each kernel of the bank, and one plain convolution over B * I channels gives the sum:
B times the arithmetic of a fixed kernel, but no grouped convolution and no N kernels in memory.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.runtime import autocast_off
from gan_t2i.ops.layers import linear
from gan_t2i.ops.modulated_conv import Style


class AdaptiveConv(nn.Module):
    """Same-size convolution with a kernel mixed by the style, input channels scaled by it, demodulation to unit variance, and a bias.

    Args:
        inputs, outputs: I, O.
        size: side of the kernels.
        w_width: W.
        kernels: B.
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, w_width: int, kernels: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.style = Style(w_width, inputs, second_order=False)
        self.choice = linear(w_width, kernels)
        # The bank lies side by side on the input channels, as the convolution reads it.
        self.weight = nn.Parameter(torch.randn(outputs, kernels * inputs, size, size) / math.sqrt(inputs * size**2))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [N, I, H, W'], w [N, W] -> [N, O, H, W']."""
        scale = self.style(w).float()  # [N, I]
        mix = self.choice(w).float().softmax(dim=1)  # [N, B]
        scales = (mix[:, :, None] * scale[:, None]).to(x.dtype)  # [N, B, I]
        # Mixing B * O outputs instead was as fast on a CPU, forward and backward, at 16x16 and below, and a third slower at 32x32.
        banks = torch.cat([x * of_kernel[:, :, None, None] for of_kernel in scales.unbind(dim=1)], dim=1)  # [N, B I, H, W']
        y = F.conv2d(banks, self.weight, padding=self.weight.shape[-1] // 2)
        with autocast_off(x.device):
            demodulation = (self.power(mix, scale) + 1e-8).rsqrt()
        return y * demodulation[:, :, None, None].to(y.dtype) + self.bias[:, None, None].to(y.dtype)

    def power(self, mix: Tensor, scale: Tensor) -> Tensor:
        """The squared norm of each item's mixed and modulated kernel: mix [N, B], scale [N, I] -> [N, O].

        |sum_b m_b s K_b|^2 = sum_ab m_a m_b <s K_a, s K_b>, so the products of the bank's kernels serve all items.
        """
        bank = self.weight.unflatten(1, (self.kernels, -1)).flatten(3).unbind(dim=1)  # B of [O, I, k k]
        pairs = list(itertools.combinations_with_replacement(range(self.kernels), 2))
        products = torch.cat([(bank[a] * bank[b]).sum(dim=2) for a, b in pairs])  # [P O, I]
        # a pair of different kernels comes in both orders
        shares = torch.stack([mix[:, a] * mix[:, b] * (1 if a == b else 2) for a, b in pairs], dim=1)  # [N, P]
        norms = (scale.square() @ products.T).unflatten(1, (len(pairs), -1))  # [N, P, O]
        # rounding may leave less than nothing where the kernels of the bank cancel
        return (norms * shares[:, :, None]).sum(dim=1).clamp(min=0)

    def extra_repr(self) -> str:
        outputs, inputs, size, _ = self.weight.shape
        return f"{inputs // self.kernels}, {outputs}, size={size}, kernels={self.kernels}"
