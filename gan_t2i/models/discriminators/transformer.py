"""Discriminator `transformer`: a transformer over patches, with the sentence joining by projection (GAT, arXiv 2509.24935).

N batch, P patches, D width.
"""

import torch
from torch import Tensor, nn

from gan_t2i.core.config import Count, StrictConfig
from gan_t2i.models.base import Discriminator
from gan_t2i.models.projection import ProjectionHead
from gan_t2i.models.text_head import SelfAttentionLayer, TextHead, TextHeadConfig
from gan_t2i.models.transformer import check_patch, to_patches
from gan_t2i.ops.layers import activate, linear
from gan_t2i.registry import register


class TransformerTrunk(nn.Module):
    """Maps images [N, C, R, R] to features [N, F]: all patches, after self-attention among them."""

    def __init__(self, config: "TransformerDiscriminator.Config", resolution: int, channels: int, width: int) -> None:
        super().__init__()
        self.patch = config.patch
        positions = (resolution // config.patch) ** 2
        self.embed = linear(channels * config.patch**2, config.width)
        self.positions = nn.Parameter(torch.randn(positions, config.width) * 0.5)
        self.layers = nn.ModuleList(SelfAttentionLayer(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.features = linear(positions * config.width, width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(to_patches(images, self.patch)) + self.positions
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        for layer in self.layers:
            x = layer(x, mask)
        return activate(self.features(self.norm(x).flatten(1)))


@register("discriminator", "transformer")
class TransformerDiscriminator(Discriminator):
    """Maps images or latents and encoded captions to logits."""

    class Config(StrictConfig):
        """Settings of the discriminator."""

        patch: Count = 2
        """Side of a patch."""
        width: Count = 192
        """D, channels of a token."""
        layers: Count = 4
        heads: Count = 6
        text_head: TextHeadConfig = TextHeadConfig(layers=1)

    def __init__(self, config: Config, *, resolution: int, text_width: int, max_tokens: int, input_channels: int = 3) -> None:
        super().__init__()
        check_patch(config.patch, resolution, "discriminator")
        self.resolution = resolution
        self.text_head = TextHead(config.text_head, text_width=text_width, max_tokens=max_tokens)
        self.trunk = TransformerTrunk(config, resolution, input_channels, config.text_head.width)
        self.head = ProjectionHead(config.text_head.width)
