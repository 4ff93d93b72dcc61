"""StyleGAN2's residual trunk (arXiv 1912.04958) without minibatch statistics: pictures to an 8x8 map. N batch, C channels, R resolution."""

import math
from collections import OrderedDict

from torch import Tensor, nn

from gan_t2i.ops.layers import activate, channels_at, conv
from gan_t2i.ops.recompute import Block
from gan_t2i.ops.resample import downsample

# The trunk ends, and the head reads the words, at this resolution.
HEAD_RESOLUTION = 8


class ResidualBlock(Block):
    """Two convolutions and half the resolution, beside a 1x1 convolution of the shrunken input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv0 = conv(inputs, inputs, 3)
        self.conv1 = conv(inputs, outputs, 3)
        self.skip = conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, 2r, 2r] -> [N, outputs, r, r]."""
        y = activate(self.conv1(downsample(activate(self.conv0(x)))))
        return (y + self.skip(downsample(x))) * math.sqrt(0.5)


def residual_trunk(resolution: int, channel_base: int, channel_max: int) -> nn.Sequential:
    """Pictures [N, 3, R, R] -> features [N, C, 8, 8], by a block for each halving.

    Blocks are named by what they see, so that a network for larger pictures finds the weights of one for smaller ones.
    """
    widths = {r: channels_at(r, channel_base, channel_max) for r in (2**k for k in range(3, resolution.bit_length()))}  # 8, ... R
    parts: dict[str, nn.Module] = {f"rgb{resolution}": conv(3, widths[resolution], 3), "activation": nn.LeakyReLU(0.2)}
    parts |= {f"down{r}": ResidualBlock(widths[r], widths[r // 2]) for r in reversed(widths) if r > HEAD_RESOLUTION}
    return nn.Sequential(OrderedDict(parts))
