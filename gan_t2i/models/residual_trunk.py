"""StyleGAN2's residual trunk (arXiv 1912.04958) without minibatch statistics: pictures to an 8x8 map. N batch, C channels, R resolution."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.errors import UsageError
from gan_t2i.ops.checkpointing import Block
from gan_t2i.ops.layers import activate, channels_at, conv
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


class ResidualTrunk(nn.Module):
    """Pictures [N, 3, R, R] -> features [N, C, 8, 8], by a block for each halving.

    Blocks are named by what they see, so that a network for larger pictures finds the weights of one for smaller ones.

    Args:
        resolution: R, a power of two from 16.
        channel_base: a map at resolution r has channel_base / r channels, ...
        channel_max: ... at most this many.
        grown_from: smaller resolutions at which it sees the picture too (input skips: arXiv 1912.04958, figure 7b). Until its new blocks say
            something, it is then the network for pictures of the largest of them.
    """

    def __init__(self, resolution: int, channel_base: int, channel_max: int, grown_from: Sequence[int] = ()) -> None:
        super().__init__()
        widths = {r: channels_at(r, channel_base, channel_max) for r in (2**k for k in range(3, resolution.bit_length()))}  # 8, ... R
        smaller = [r for r in widths if HEAD_RESOLUTION < r < resolution]
        if wrong := {*grown_from} - {*smaller}:
            raise UsageError(f"discriminator.params.grown_from: {sorted(wrong)} px, allowed: {smaller}, smaller than {resolution}")
        self.seen = {resolution, *grown_from}
        self.add_module(f"rgb{resolution}", conv(3, widths[resolution], 3))
        for r in reversed([*smaller, resolution]):
            self.add_module(f"down{r}", ResidualBlock(widths[r], widths[r // 2]))
        for r in sorted(grown_from):
            self.add_module(f"rgb{r}", conv(3, widths[r], 3))

    def forward(self, pictures: Tensor) -> Tensor:
        x = self._read(pictures)
        while x.shape[-1] > HEAD_RESOLUTION:
            x = self.get_submodule(f"down{x.shape[-1]}")(x)
            if x.shape[-1] >= min(self.seen):
                pictures = downsample(pictures)
                if x.shape[-1] in self.seen:
                    x = x + self._read(pictures)
        return x

    def _read(self, pictures: Tensor) -> Tensor:
        return F.leaky_relu(self.get_submodule(f"rgb{pictures.shape[-1]}")(pictures), 0.2)
