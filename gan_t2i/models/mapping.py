"""Mapping network: latent z and sentence vector -> w (StyleGAN, arXiv 1812.04948; conditioning and truncation as in StyleGAN-T,
arXiv 2301.09515). N batch, Z latent width, S sentence width, W style width."""

import itertools

import torch
from torch import Tensor, nn

from gan_t2i.ops.layers import activate, linear


class MappingNetwork(nn.Module):
    """Passes z through layers of its own, appends the sentence vector, and passes both through the shared layers.

    `layers` is the number of shared layers. Truncation pulls only the z path towards its running mean `w_avg`, before the sentence joins: the
    prompt is never averaged away.
    """

    w_avg: Tensor

    def __init__(self, z_width: int, sentence_width: int, w_width: int, layers: int) -> None:
        super().__init__()
        self.z_layers = nn.ModuleList([linear(z_width, w_width), linear(w_width, w_width)])
        self.norm_sentence = nn.LayerNorm(sentence_width)
        widths = [w_width + sentence_width] + [w_width] * layers
        self.shared_layers = nn.ModuleList(linear(i, o) for i, o in itertools.pairwise(widths))
        self.register_buffer("w_avg", torch.zeros(w_width))

    def forward(self, z: Tensor, sentence: Tensor, truncation_psi: float | Tensor = 1.0) -> Tensor:
        """z [N, Z] and sentence [N, S] -> w [N, W]. A psi of 1 leaves the z path as it is, 0 gives every z the same w for a sentence."""
        x = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.z_layers:
            x = activate(layer(x))
        if self.training:
            # decay 0.998 per forward pass, as in StyleGAN2 (arXiv 1912.04958): an average over some five hundred batches
            self.w_avg.lerp_(x.detach().float().mean(dim=0), 1 - 0.998)
        if isinstance(truncation_psi, Tensor) or truncation_psi != 1:  # a captured or exported graph takes a tensor, and cannot branch
            x = self.w_avg.lerp(x.float(), truncation_psi).to(x.dtype)
        x = torch.cat([x, self.norm_sentence(sentence).to(x.dtype)], dim=1)
        for layer in self.shared_layers:
            x = activate(layer(x))
        return x
