"""Discriminators `aligned` and `resnet`: one residual trunk over the image, and a head that compares its features with a caption.

The trunk is StyleGAN2's residual discriminator (arXiv 1912.04958) without minibatch statistics, so no logit depends on another image. The
sentence joins by projection. The words join by word alignment in `aligned`, by cross-attention in `resnet`. In `aligned` every convolution
depends on the image alone, so a further caption costs a few matrix products and many negatives per image are cheap; in `resnet` a further
caption costs a pass of the whole head. n images, k captions each, C channels, D width of the text head.
"""

from typing import ClassVar

from torch import Tensor, nn

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.models.attention_block import WordAttentionBlock
from gan_t2i.models.base import Discriminator
from gan_t2i.models.projection import projection_logits
from gan_t2i.models.residual_trunk import HEAD_RESOLUTION, ResidualTrunk
from gan_t2i.models.text_head import TextCondition, TextHead, TextHeadConfig
from gan_t2i.models.word_alignment import WordAlignment
from gan_t2i.ops.layers import activate, channels_at, conv, linear
from gan_t2i.ops.resample import downsample
from gan_t2i.registry import register


class ResidualHead(nn.Module):
    """Maps features at 8x8 and captions to one logit per caption.

    Args:
        channels: C of the features.
        channels_4: channels at 4x4.
        text: settings of the text head.
        aligned: True adds the alignment score of the words to the logit, False lets the features attend to the words first.
    """

    def __init__(self, channels: int, channels_4: int, text: TextHeadConfig, *, aligned: bool) -> None:
        super().__init__()
        self.words = WordAlignment(channels, HEAD_RESOLUTION**2, text.width, text.heads) if aligned else None
        self.word_attention = None if aligned else WordAttentionBlock(channels, text.width)
        self.conv0 = conv(channels, channels_4, 3)
        self.conv1 = conv(channels_4, channels_4, 3)
        self.features = linear(channels_4 * 16, text.width)
        self.realism = linear(text.width, 1)
        self.match = linear(text.width, text.width)

    def forward(self, features: Tensor, text: TextCondition) -> Tensor:
        """Features [n, C, 8, 8] and n * k captions, grouped by image -> logits [n * k] float32."""
        x = features
        if self.word_attention is not None:
            x = self.word_attention(x.repeat_interleave(len(text.words) // len(x), dim=0), text)  # [n k, C, 8, 8]
        x = activate(self.conv1(downsample(activate(self.conv0(x)))))  # [n or n k, C, 4, 4]
        h = activate(self.features(x.flatten(1)))  # [n or n k, D]
        logits = projection_logits(self.match(h), self.realism(h), text.sentence)
        return logits if self.words is None else logits + self.words(features, text)


class ResidualDiscriminator(Discriminator):
    """Base of `aligned` and `resnet`."""

    class Config(StrictConfig):
        """Settings of the discriminator."""

        channel_base: Count = 512
        """A feature map at resolution r has channel_base / r channels, ..."""
        channel_max: Count = 128
        """... at most this many."""
        grown_from: tuple[int, ...] = ()
        """Smaller resolutions at which the trunk reads the downsampled image too. With 32, a run warm-started (`init`) from one of 32 px starts
        with that run's logits for the downsampled image."""
        text_head: TextHeadConfig = TextHeadConfig()

    aligned: ClassVar[bool]

    def __init__(self, config: Config, *, resolution: int, text_width: int, max_tokens: int, input_channels: int = 3) -> None:
        super().__init__()
        self.resolution = resolution
        self.text_head = TextHead(config.text_head, text_width=text_width, max_tokens=max_tokens)
        self.trunk = ResidualTrunk(resolution, config.channel_base, config.channel_max, config.grown_from, input_channels)
        channels, channels_4 = (channels_at(r, config.channel_base, config.channel_max) for r in (HEAD_RESOLUTION, 4))
        self.head = ResidualHead(channels, channels_4, config.text_head, aligned=self.aligned)


@register("discriminator", "aligned")
class AlignedDiscriminator(ResidualDiscriminator):
    """Maps images and encoded captions to logits to which each word adds how well it is found in the image."""

    aligned = True


@register("discriminator", "resnet")
class ResnetDiscriminator(ResidualDiscriminator):
    """Maps images and encoded captions to logits of features that have attended to the words."""

    aligned = False
