"""A second generator, registered as "second" wherever a test imports this module: the registry, the contract tests and a training step take it
without a change in the package. N batch, R resolution."""

from torch import Tensor

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.models.attention_block import WordAttentionBlock
from gan_t2i.models.base import Generator
from gan_t2i.models.mapping import MappingNetwork
from gan_t2i.models.text_head import TextHead, TextHeadConfig
from gan_t2i.ops.layers import activate, conv, linear
from gan_t2i.ops.resample import upsample_to
from gan_t2i.registry import register
from gan_t2i.text.batch import TextBatch

CHANNELS = 16


@register("generator", "second")
class SecondGenerator(Generator):
    """A fully connected layer to an 8x8 map, attention to the words, one convolution, and interpolation to the resolution."""

    class Config(StrictConfig):
        """Settings of the generator."""

        z_width: Count = 8
        text_head: TextHeadConfig = TextHeadConfig(width=32, layers=1, heads=2)

    def __init__(self, config: Config, *, resolution: int, text_width: int, max_tokens: int, channels: int = 3) -> None:
        super().__init__()
        self.resolution = resolution
        self.z_width = config.z_width
        self.text_head = TextHead(config.text_head, text_width=text_width, max_tokens=max_tokens)
        self.mapping = MappingNetwork(config.z_width, config.text_head.width, 32, layers=1)
        self.to_map = linear(32, CHANNELS * 64)
        self.words = WordAttentionBlock(CHANNELS, config.text_head.width)
        self.conv = conv(CHANNELS, CHANNELS, 3)
        self.to_rgb = conv(CHANNELS, channels, 1)

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        """z [N, Z] and N encoded captions -> images [N, channels, R, R] float32."""
        condition = self.text_head(text)
        x = self.to_map(self.mapping(z, condition.sentence, truncation_psi)).unflatten(1, (CHANNELS, 8, 8))
        x = activate(self.conv(self.words(activate(x), condition)))
        return upsample_to(self.to_rgb(x).float(), self.resolution, smooth=True)
