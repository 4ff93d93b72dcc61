"""StyleGAN2's residual trunk (arXiv 1912.04958) without minibatch statistics: images to an 8x8 map. N batch, C channels, R resolution."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.errors import UsageError
from gan_t2i.ops.checkpointing import Block
from gan_t2i.ops.layers import activate, channels_at, conv
from gan_t2i.ops.resample import downsample

# Side of the trunk's last feature map, at which the head reads the words.
HEAD_RESOLUTION = 8


class ResidualBlock(Block):
    """Two convolutions that halve the resolution, plus a skip connection: a 1x1 convolution of the downsampled input."""

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
    """Maps images [N, 3, R, R] to features [N, C, 8, 8], with one block per halving.

    Blocks are named by their input resolution, so that a network for larger images can take over the weights of one for smaller images.

    Args:
        resolution: R, a power of two from 8.
        channel_base: a map at resolution r has channel_base / r channels, ...
        channel_max: ... at most this many.
        grown_from: smaller resolutions at which it reads the downsampled image too (input skips: arXiv 1912.04958, figure 7b). With the output
            layers of its new blocks at zero, it is the network for images of the largest of these resolutions.

    Raises:
        UsageError: a resolution in `grown_from` is not a power of two above 8 and below R.
    """

    def __init__(self, resolution: int, channel_base: int, channel_max: int, grown_from: Sequence[int] = (), image_channels: int = 3) -> None:
        super().__init__()
        widths = {r: channels_at(r, channel_base, channel_max) for r in (2**k for k in range(3, resolution.bit_length()))}  # 8, ... R
        smaller = [r for r in widths if HEAD_RESOLUTION < r < resolution]
        if others := {*grown_from} - {*smaller}:
            raise UsageError(f"discriminator.params.grown_from: {sorted(others)} px, allowed: {smaller}, smaller than {resolution}")
        self.input_resolutions = {resolution, *grown_from}
        self.add_module(f"rgb{resolution}", conv(image_channels, widths[resolution], 3))
        for r in sorted((r for r in widths if r > HEAD_RESOLUTION), reverse=True):
            self.add_module(f"down{r}", ResidualBlock(widths[r], widths[r // 2]))
        for r in sorted(grown_from):
            self.add_module(f"rgb{r}", conv(image_channels, widths[r], 3))

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, R, R] -> [N, C, 8, 8]."""
        x = self._from_rgb(images)
        while x.shape[-1] > HEAD_RESOLUTION:
            x = self.get_submodule(f"down{x.shape[-1]}")(x)
            if x.shape[-1] >= min(self.input_resolutions):
                images = downsample(images)
                if x.shape[-1] in self.input_resolutions:
                    x = x + self._from_rgb(images)
        return x

    def _from_rgb(self, images: Tensor) -> Tensor:
        return F.leaky_relu(self.get_submodule(f"rgb{images.shape[-1]}")(images), 0.2)
