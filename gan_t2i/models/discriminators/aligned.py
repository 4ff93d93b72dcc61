"""Discriminator `aligned`: the trunk of `resnet`, and a head in which every word looks for its own place in the picture.

A word attends to the places of the feature map, and what it finds there is held against the word itself (the word-region alignment of
AttnGAN's DAMSM, Xu et al. 2018, arXiv 1711.10485, here as a part of the logit). All convolutions see the picture alone, so a further caption
costs a few products and many negatives a picture are cheap. n pictures, k captions each, C channels, L tokens, D width of the text head.
"""

import math

import torch
from torch import Tensor, nn

from gan_t2i.config import Count, StrictConfig
from gan_t2i.models.base import Discriminator
from gan_t2i.models.discriminators.resnet import HEAD_RESOLUTION, residual_trunk
from gan_t2i.models.text_head import TextCondition, TextHead, TextHeadConfig
from gan_t2i.ops.attention import attend
from gan_t2i.ops.layers import activate, channels_at, conv, linear, to_sequence
from gan_t2i.ops.resample import downsample
from gan_t2i.registry import register


class WordAlignment(nn.Module):
    """How well the words of captions are found at the places of a feature map."""

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.positions = nn.Parameter(torch.randn(HEAD_RESOLUTION**2, channels) * 0.1)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(channels, width, bias=False)
        self.to_value = nn.Linear(channels, width, bias=False)
        self.to_found = linear(width, width)

    def forward(self, features: Tensor, text: TextCondition) -> Tensor:
        """features [n, C, 8, 8] and n * k captions, those of a picture in a row -> scores [n * k] float32."""
        places = self.norm(to_sequence(features)) + self.positions  # [n, 64, C]
        # the words of all captions of a picture stand in one sequence, so that its keys and values are made once
        queries = self.to_query(text.words).unflatten(0, (len(features), -1)).flatten(1, 2)  # [n, k L, D]
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (queries, self.to_key(places), self.to_value(places))
        )  # [n, heads, *, D / heads]
        found = self.to_found(attend(query, key, value).transpose(1, 2).flatten(2)).float().reshape(text.words.shape)
        scores = (found * text.words.float()).sum(dim=2) / math.sqrt(found.shape[2])  # [n k, L]
        return (scores * text.mask).sum(dim=1) / text.mask.sum(dim=1).sqrt()


class AlignedHead(nn.Module):
    """Features at 8x8 and captions -> one logit for each caption."""

    def __init__(self, channels: int, channels_4: int, width: int, heads: int) -> None:
        super().__init__()
        self.words = WordAlignment(channels, width, heads)
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
        text_head: TextHeadConfig = TextHeadConfig()

    def __init__(self, config: Config, *, resolution: int, text_width: int, max_tokens: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.text_head = TextHead(config.text_head, text_width=text_width, max_tokens=max_tokens)
        self.trunk = residual_trunk(resolution, config.channel_base, config.channel_max)
        channels, channels_4 = (channels_at(r, config.channel_base, config.channel_max) for r in (HEAD_RESOLUTION, 4))
        self.head = AlignedHead(channels, channels_4, config.text_head.width, config.text_head.heads)
