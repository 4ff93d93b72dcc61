"""A discriminator of small patches that reads the caption: PatchGAN (Isola et al. 2017, arXiv 1611.07004) with a projection of the sentence.

It sees no more than 21 pixels at once, so it judges surfaces, edges and the style, and leaves the layout to other losses. N batch, C channels,
R resolution.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.ops.layers import activate, conv, linear

WIDTH = 48  # channels of the full-size maps; the others have twice as many
STRIDE = 4  # pixels from one patch to the next


class PatchDiscriminator(nn.Module):
    """Maps images [N, C, R, R] and sentence vectors [N, S] to the logits of patches [N, R / 4, R / 4]."""

    def __init__(self, channels: int, sentence_width: int) -> None:
        super().__init__()
        self.finest, self.halved = conv(channels, WIDTH, 3), conv(WIDTH, WIDTH, 3)
        self.coarser, self.quartered = conv(WIDTH, 2 * WIDTH, 3), conv(2 * WIDTH, 2 * WIDTH, 3)
        self.last = conv(2 * WIDTH, 2 * WIDTH, 3)
        for layer in (self.halved, self.quartered):
            layer.stride = (2, 2)
        self.realism = conv(2 * WIDTH, 1, 1)
        self.sentence = linear(sentence_width, 2 * WIDTH)

    def forward(self, images: Tensor, sentence: Tensor) -> Tensor:
        x = images
        for layer in (self.finest, self.halved, self.coarser, self.quartered, self.last):
            x = activate(layer(x))
        match = (x * self.sentence(F.layer_norm(sentence, sentence.shape[1:]))[:, :, None, None]).mean(dim=1) * x.shape[1] ** 0.5
        return self.realism(x)[:, 0] + match
