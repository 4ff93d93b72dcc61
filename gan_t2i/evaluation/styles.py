"""A judge of styles: which of the data's styles a picture is drawn in, whatever it shows.

It sees a style as the distribution of small patches: the mean over a picture of random cosines of its patches of 1, 3 and 5 pixels (random
Fourier features, Rahimi and Recht 2007, of a kernel mean embedding, Smola et al. 2007), classified by least squares. It is fitted in closed
form to real training pictures alone. These are changed a little in tone, sharpness and noise, as a palette that is a few levels off is no other
style; without that, the judge knows styles by exact colours. N pictures, R resolution, F features, S styles.
"""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from gan_t2i.core.images import from_uint8
from gan_t2i.core.log import bar_options
from gan_t2i.core.runtime import seeded_rng, seeded_weights
from gan_t2i.core.weights import hash_state
from gan_t2i.data.packing import PackedDataset
from gan_t2i.evaluation.features import FeatureSpace
from gan_t2i.pretraining.loop import train_or_load

log = logging.getLogger(__name__)

_VERSION = 1  # of the features and the fit, raised with either
_SIDE = 64  # larger pictures are averaged down
_SIZES = (1, 3, 5)  # sides of the patches
_COSINES = 192  # per size
_RIDGE = 10.0
_CHUNK = 8  # pictures at a time: their cosines fit into the processor's cache


class StyleJudge(nn.Module):
    """uint8 [N, 3, R, R] -> a score for each style [N, S]; the highest names the style."""

    def __init__(self, styles: int) -> None:
        super().__init__()
        rng = seeded_rng("style judge", _VERSION)
        for size in _SIZES:
            scales = 10 ** torch.rand(_COSINES, 1, 1, 1, generator=rng) / size
            self.register_buffer(f"kernel{size}", scales * torch.randn(_COSINES, 3, size, size, generator=rng))
            self.register_buffer(f"phase{size}", 2 * torch.pi * torch.rand(_COSINES, generator=rng))
        self.linear = nn.Linear(_COSINES * len(_SIZES), styles)

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(self.linear.weight.device)
        return self.linear(torch.cat([self.cosines(from_uint8(part)) for part in images.split(_CHUNK)]))

    def cosines(self, x: Tensor) -> Tensor:
        """Pictures in [-1, 1] [N, 3, R, R] -> [N, F]."""
        x = F.avg_pool2d(x, max(1, x.shape[2] // _SIDE))
        parts = [F.conv2d(x, self.get_buffer(f"kernel{size}"), self.get_buffer(f"phase{size}")) for size in _SIZES]
        return torch.cat([part.cos_().mean(dim=(2, 3)) for part in parts], dim=1)

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Set the classifier to ridge regression of one-hot `labels` [N] on standardized `features` [N, F]."""
        x, target = features.double(), F.one_hot(labels, self.linear.out_features).double()
        mean, prior = x.mean(dim=0), target.mean(dim=0)
        std = x.std(dim=0, correction=0).clamp(min=1e-6)
        x = (x - mean) / std
        ridge = _RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(x.T @ x + ridge, x.T @ (target - prior)).T / std  # [S, F]
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(prior - weight @ mean)


def prepare_judge(dataset: PackedDataset, items: Sequence[int], labels: Sequence[int], device: torch.device) -> FeatureSpace:
    """The judge of the styles `labels` of the pictures at `items`, as a space of its scores; fitted on first use, and then cached."""
    with seeded_weights(0):  # of no use, but drawn
        judge = StyleJudge(max(labels) + 1).to(device)

    def train() -> None:
        log.info(f"style judge: fitting to {len(items):,} real pictures (once)")
        rng = seeded_rng("style judge", "changes")
        with torch.no_grad(), tqdm(total=len(items), desc="style judge", unit="img", **bar_options()) as bar:
            features = []
            for part in torch.tensor(items).split(_CHUNK):
                features.append(judge.cosines(_changed(from_uint8(dataset.gather(part)), rng).to(device)))
                bar.update(len(part))
        judge.fit(torch.cat(features), torch.tensor(labels, device=device))

    train_or_load(judge, "judge", [_VERSION, dataset.fingerprint, [*items], [*labels]], train, verb="fitted")
    judge.eval().requires_grad_(False)
    return FeatureSpace("patches", hash_state(judge), judge.linear.out_features, judge, standard=True)


def _changed(x: Tensor, rng: torch.Generator) -> Tensor:
    """Return pictures [N, 3, R, R], each a little blurred, of other contrast and tone, and with noise."""

    def normal(std: float, *shape: int) -> Tensor:
        return std * torch.randn(len(x), *shape, generator=rng)

    x = x.lerp(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), torch.rand(len(x), 1, 1, 1, generator=rng))
    return x * (1 + normal(0.04, 1, 1, 1)) + normal(0.03, 3, 1, 1) + normal(0.03, 1, 1, 1) * normal(1, *x.shape[1:])
