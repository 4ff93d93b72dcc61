"""A discriminator of small patches that reads the caption: PatchGAN (Isola et al. 2017, arXiv 1611.07004) with a projection of the sentence.

It sees no more than 20 pixels at once, so it judges surfaces, edges and the style, and leaves the layout to other losses. N batch, C channels,
R resolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.ops.layers import activate, conv, linear

WIDTH = 48  # channels at half of the resolution; at a quarter there are twice as many
STRIDE = 4  # pixels from one patch to the next


class PatchDiscriminator(nn.Module):
    """Maps images [N, C, R, R] and sentence vectors [N, S] to the logits of patches [N, R / 4, R / 4]."""

    def __init__(self, channels: int, sentence_width: int) -> None:
        super().__init__()
        # pixels in squares of 2 x 2 first, as maps of the full size would take half of the time
        self.layers = nn.ModuleList(
            [conv(4 * channels, WIDTH, 3), conv(WIDTH, WIDTH, 3), conv(4 * WIDTH, 2 * WIDTH, 1), conv(2 * WIDTH, 2 * WIDTH, 3)]
        )
        self.realism = conv(2 * WIDTH, 1, 1)
        self.sentence = linear(sentence_width, 2 * WIDTH)

    def forward(self, images: Tensor, sentence: Tensor) -> Tensor:
        x = F.pixel_unshuffle(images, 2).contiguous(memory_format=torch.channels_last)
        for number, layer in enumerate(self.layers):
            if number == 2:
                x = F.pixel_unshuffle(x, 2)
            x = activate(layer(x))
        match = (x * self.sentence(F.layer_norm(sentence, sentence.shape[1:]))[:, :, None, None]).mean(dim=1) * x.shape[1] ** 0.5
        return self.realism(x)[:, 0] + match
