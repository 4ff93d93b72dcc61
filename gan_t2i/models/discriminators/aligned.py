"""Discriminator `aligned`: the trunk of `resnet`, and a head in which every word looks for its own place in the picture.

What a word finds is a part of the logit (`WordAlignment`). All convolutions see the picture alone, so a further caption costs a few
products and many negatives a picture are cheap. n pictures, k captions each, C channels, D width of the text head.
"""

import math

import torch
from torch import Tensor, nn

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.models.base import Discriminator
from gan_t2i.models.residual_trunk import HEAD_RESOLUTION, ResidualTrunk
from gan_t2i.models.text_head import TextCondition, TextHead, TextHeadConfig
from gan_t2i.models.word_alignment import WordAlignment
from gan_t2i.ops.layers import activate, channels_at, conv, linear
from gan_t2i.ops.resample import downsample
from gan_t2i.registry import register


class AlignedHead(nn.Module):
    """Features at 8x8 and captions -> one logit for each caption."""

    def __init__(self, channels: int, channels_4: int, width: int, heads: int) -> None:
        super().__init__()
        self.words = WordAlignment(channels, HEAD_RESOLUTION**2, width, heads)
        self.conv0 = conv(channels, channels_4, 3)
        self.conv1 = conv(channels_4, channels_4, 3)
        self.features = linear(channels_4 * 16, width)
        self.realism = linear(width, 1)
        self.match = linear(width, width)

    def forward(self, features: Tensor, text: TextCondition) -> Tensor:
        """features [n, C, 8, 8] and n * k captions, those of a picture in a row -> logits [n * k] float32."""
        captions = len(text.words) // len(features)
        x = activate(self.conv1(downsample(activate(self.conv0(features)))))  # [n, C, 4, 4]
        h = activate(self.features(x.flatten(1)))  # [n, D]
        of_picture = torch.cat([self.match(h), self.realism(h)], dim=1).float().repeat_interleave(captions, dim=0)
        projection = (of_picture[:, :-1] * text.sentence.float()).sum(dim=1) / math.sqrt(h.shape[1])
        return of_picture[:, -1] + projection + self.words(features, text)


@register("discriminator", "aligned")
class AlignedDiscriminator(Discriminator):
    """Pictures and encoded captions -> logits.

    Args:
        config: the user's settings.
        resolution: R, a power of two from 16 to 512.
        text_width: E, width of the frozen encoder.
        max_tokens: most tokens a caption can have.
    """

    class Config(StrictConfig):
        """Settings of the discriminator."""

        channel_base: Count = 512
        """A feature map at resolution r has channel_base / r channels, ..."""
        channel_max: Count = 128
        """... at most this many."""
        grown_from: tuple[int, ...] = ()
        """Smaller resolutions at which the trunk sees the picture too. With 32, a run that begins (`init`) with the weights of one of 32 px
        begins with its verdicts, on the shrunken picture."""
        text_head: TextHeadConfig = TextHeadConfig()

    def __init__(self, config: Config, *, resolution: int, text_width: int, max_tokens: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.text_head = TextHead(config.text_head, text_width=text_width, max_tokens=max_tokens)
        self.trunk = ResidualTrunk(resolution, config.channel_base, config.channel_max, config.grown_from)
        channels, channels_4 = (channels_at(r, config.channel_base, config.channel_max) for r in (HEAD_RESOLUTION, 4))
        self.head = AlignedHead(channels, channels_4, config.text_head.width, config.text_head.heads)
