"""Term `reconstruction`: G is pulled towards the real image of its caption (pix2pix, arXiv 1611.07004).

It suits sets with about one image a caption and too few of them for D alone to teach G from nothing. Seeds of a prompt come to look alike.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from gan_t2i.core.config import Count, Positive
from gan_t2i.losses.inputs import Draws, MicroBatch, Scores
from gan_t2i.losses.term import KIND, LossTerm, TermConfig
from gan_t2i.models.base import Generator
from gan_t2i.registry import register
from gan_t2i.text.batch import TextBatch


@torch.no_grad()
def nearest_z(G: Generator, z: Tensor, text: TextBatch, real: Tensor, searched: Tensor) -> Tensor:
    """Return, of the candidates z [n, k, Z] of n captions, those [n, Z] whose images are nearest to the real ones: implicit maximum likelihood
    (Li and Malik 2018, arXiv 1809.09087).

    Rows that are not among `searched` [m] take the first: a caption with one image alone leaves z nothing to choose.
    """
    if z.shape[1] == 1 or not len(searched):
        return z[:, 0]
    candidates, text, real = z[searched], text[searched], real[searched]
    distances = [(G(each, text) - real).square().mean(dim=(1, 2, 3)) for each in candidates.unbind(dim=1)]
    nearest = candidates[torch.arange(len(searched), device=z.device), torch.stack(distances).argmin(dim=0)]
    return z[:, 0].index_copy(0, searched, nearest)


@register(KIND, "reconstruction")
class ReconstructionTerm(LossTerm):
    """Mean squared distance between generated images and the real ones of their captions."""

    class Config(TermConfig):
        """Settings of the term."""

        kimg: Positive | None = None
        """Time over which the weight falls linearly to nothing, so that D alone settles the details; None keeps the weight."""

        candidates: Count = 1
        """Latents z drawn for each image whose caption other images have too, of which `nearest_z` keeps one. The others are free to differ."""

    config: Config

    def weight_at(self, nimg: int) -> float:
        """Return the weight after `nimg` images."""
        if self.config.kimg is None:
            return self.config.weight
        return self.config.weight * max(0.0, 1 - nimg / (self.config.kimg * 1000))

    def draw(self, draws: Draws) -> Mapping[str, Tensor]:
        return {"reconstruction/weight": torch.tensor(self.weight_at(draws.nimg))}

    def generator_loss(self, batch: MicroBatch, scores: Scores) -> tuple[Tensor, dict[str, Tensor]]:
        return batch.drawn["reconstruction/weight"] * scores.distance, {}
