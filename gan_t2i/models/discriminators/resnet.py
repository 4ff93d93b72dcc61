"""Discriminator `resnet`: a residual trunk that sees only the picture, and a head that reads it against the caption.

The trunk is StyleGAN2's residual discriminator (arXiv 1912.04958) without minibatch statistics, so no logit depends on another picture;
the head joins the words by cross-attention and the sentence by projection (Miyato & Koyama 2018, arXiv 1802.05637). They are apart so that
a mismatched caption costs only the head. N batch, C channels, R resolution, D width of the text head.
"""

import math

from torch import Tensor, nn

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.models.attention_block import WordAttentionBlock
from gan_t2i.models.base import Discriminator
from gan_t2i.models.residual_trunk import HEAD_RESOLUTION, ResidualTrunk
from gan_t2i.models.text_head import TextCondition, TextHead, TextHeadConfig
from gan_t2i.ops.layers import activate, channels_at, conv, linear
from gan_t2i.ops.resample import downsample
from gan_t2i.registry import register


class TextConditionedHead(nn.Module):
    """Features at 8x8 and a caption -> one logit."""

    def __init__(self, channels: int, channels_4: int, width: int) -> None:
        super().__init__()
        self.word_attention = WordAttentionBlock(channels, width)
        self.conv0 = conv(channels, channels_4, 3)
        self.conv1 = conv(channels_4, channels_4, 3)
        self.features = linear(channels_4 * 16, width)
        self.realism = linear(width, 1)
        self.match = linear(width, width)

    def forward(self, features: Tensor, text: TextCondition) -> Tensor:
        """features [n, C, 8, 8] and n * k captions, those of a picture in a row -> logits [n * k] float32."""
        features = features.repeat_interleave(len(text.words) // len(features), dim=0)
        x = activate(self.conv0(self.word_attention(features, text)))
        x = activate(self.conv1(downsample(x)))  # [N, C, 4, 4]
        h = activate(self.features(x.flatten(1)))  # [N, D]
        projection = (self.match(h).float() * text.sentence.float()).sum(dim=1) / math.sqrt(h.shape[1])
        return self.realism(h).float().squeeze(1) + projection


@register("discriminator", "resnet")
class ResnetDiscriminator(Discriminator):
    """Pictures and encoded captions -> logits. `trunk` runs once a picture; `head` once for each caption it is held against.

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
        self.head = TextConditionedHead(channels, channels_4, config.text_head.width)
