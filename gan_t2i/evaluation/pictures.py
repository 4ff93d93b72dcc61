"""Are the drawn pictures like the real ones, whatever the words? Figures that mean something for a few thousand pictures.

The pictures of a side (training, held out) are halved at random. Each half in turn is the reference, and the model draws the captions of the
other half; the real pictures of those captions, held against the same reference, say what a perfect generator would score. Figures are means
over the two turns. A half has N pictures, features have D numbers; `feature_metrics.py` defines each figure and cites its paper.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.images import composite_on_grey
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.packing import Indices, PackedDataset
from gan_t2i.evaluation import metrics
from gan_t2i.evaluation.features import FeatureSpace

Generate = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Prompts and seeds -> pictures, prompt by prompt, each with its seeds in order."""

FEATURES = ("random", "matcher")  # unless told: both always work, and one knows nothing of what the other has learned
LIMIT = 2000  # pictures a side, unless told
SEEDS = 4  # pictures of a prompt for their diversity, unless told
PROMPTS = 64  # prompts for it
LEAST = 50  # pictures in a half
_PARTS = 64  # pictures embedded at a time

Values = dict[str, float]


@dataclass(frozen=True)
class Figure:
    """One figure of drawn pictures, and the same of real ones; `why` says why there is none."""

    network: str
    sha256: str
    width: int  # D
    side: str
    name: str
    drawn: float | None
    real: float | None
    std: float | None  # of KID, among its subsets
    count: int  # N, or the pictures compared for diversity
    why: str = ""

    def line(self) -> str:
        drawn, real, std = (f"{value:8.4f}" if value is not None else f"{'-':>8}" for value in (self.drawn, self.real, self.std))
        start = f"{self.network:18}  {self.sha256[:12]}  {self.width:4}  {self.side:7}  {self.name:9}"
        return f"{start}  {drawn}  {std}  {real}  {self.count:5}  {self.why}".rstrip()


@dataclass(frozen=True)
class PicturesResult:
    """All figures, and notes on what was left out."""

    limit: int
    seeds: int
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]

    @property
    def changed(self) -> dict[str, int | str]:
        """The settings that are not the defaults, which the name of its file tells."""
        used = tuple(dict.fromkeys(figure.network for figure in self.figures))
        settings = (("features", "+".join(used), "+".join(FEATURES)), ("limit", self.limit, LIMIT), ("seeds", self.seeds, SEEDS))
        return {name: value for name, value, usual in settings if value != usual}

    def scalars(self) -> dict[str, float]:
        """What TensorBoard shows."""
        drawn = {f"Metrics/pictures/{f.network}/{f.side}_{f.name}": f.drawn for f in self.figures}
        return {name: value for name, value in drawn.items() if value is not None}

    def table(self) -> str:
        """A line for each figure, with the network, the start of its hash, D and N."""
        head = f"{'features':18}  {'hash':12}  {'d':>4}  {'side':7}  {'figure':9}  {'drawn':>8}  {'std':>8}  {'real':>8}  {'n':>5}"
        return "\n".join([head, *(figure.line() for figure in self.figures), *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "suite": "pictures",
            "limit": self.limit,
            "seeds": self.seeds,
            "figures": [asdict(figure) for figure in self.figures],
            "notes": list(self.notes),
        }


def check_enough(dataset: PackedDataset, limit: int = LIMIT) -> None:
    """Raises `GanT2IError` where there are too few training pictures to say anything."""
    if min(limit, len(dataset.train)) < 2 * LEAST:
        raise GanT2IError(
            f"the suite pictures compares halves of {LEAST} training pictures at least: {2 * LEAST} are needed, and there are "
            f"{min(limit, len(dataset.train))} (of {len(dataset.train)}, with limit {limit})"
        )


def run_pictures(
    generate: Generate,
    dataset: PackedDataset,
    spaces: Sequence[FeatureSpace],
    *,
    limit: int = LIMIT,
    seeds: int = SEEDS,
    progress: bool = True,
) -> PicturesResult:
    """Let `generate` draw the captions of up to `limit` pictures of each side, each with a seed of its own, and compare in each of `spaces`.

    For diversity it draws `seeds` >= 2 pictures of up to `PROMPTS` training captions. A held-out side with fewer than twice `LEAST` pictures
    is left out, with a note. Raises `GanT2IError` where the training side has fewer.
    """
    if seeds < 2:
        raise ValueError(f"seeds = {seeds}: at least two, for the diversity among them")
    check_enough(dataset, limit)
    sides = {"train": _sample(dataset.train, limit, "train"), "heldout": _sample(dataset.heldout, limit, "heldout")}
    notes = []
    if len(sides["heldout"]) < 2 * LEAST:
        notes.append(f"heldout: left out; {2 * LEAST} pictures are needed, and there are {len(sides.pop('heldout'))}")
    first = [dataset.captions[ids[0]] for ids in dataset.caption_ids]
    prompts = list(dict.fromkeys(first[item] for item in sides["train"].tolist()))[:PROMPTS]
    figures: list[Figure] = []
    with tqdm(
        total=sum(map(len, sides.values())) + len(prompts) * seeds, desc="pictures", unit="img", disable=None if progress else True
    ) as bar:
        drawn = {
            side: _embed_drawn(generate, [(first[item], [n]) for n, item in enumerate(items)], spaces, bar) for side, items in sides.items()
        }
        of_prompts = _embed_drawn(generate, [(prompt, range(seeds)) for prompt in prompts], spaces, bar)
    real = {side: [embed_real(space, dataset, items) for space in spaces] for side, items in sides.items()}
    for number, space in enumerate(spaces):
        for side in sides:
            figures += _compare(space, side, real[side][number], drawn[side][number])
        groups = of_prompts[number].unflatten(0, (len(prompts), seeds))
        captions = [first[item] for item in sides["train"].tolist()]
        figures.append(_diversity(space, groups, real["train"][number], captions))
    return PicturesResult(limit, seeds, tuple(figures), tuple(notes))


def embed_real(space: FeatureSpace, dataset: PackedDataset, items: Indices) -> Tensor:
    """Features [N, D] of the pictures at `items`; few of them wait in memory."""
    return torch.cat([space.embed(dataset.gather(part)) for part in torch.from_numpy(items).split(_PARTS)])


def _sample(items: Indices, limit: int, side: str) -> Indices:
    """Up to `limit` of `items`, in an order that has nothing to do with the data set's."""
    order = torch.randperm(len(items), generator=seeded_rng("pictures", side))[:limit]
    return items[order.numpy()]


def _embed_drawn(generate: Generate, asked: Sequence[tuple[str, Sequence[int]]], spaces: Sequence[FeatureSpace], bar: Any) -> list[Tensor]:
    """Features [N, D] in each of `spaces` of what is drawn for (prompt, seeds), in order; few pictures wait in memory."""
    found: list[list[Tensor]] = [[] for _ in spaces]
    for batch in _batches(generate, asked):
        for features, space in zip(found, spaces, strict=True):
            features.append(space.embed(batch))
        bar.update(len(batch))
    return [torch.cat(features) for features in found]


def _batches(generate: Generate, asked: Sequence[tuple[str, Sequence[int]]]) -> Iterator[Tensor]:
    """uint8 [<= about _PARTS, 3, R, R]."""
    pictures: list[Image.Image] = []
    for number, (prompt, seeds) in enumerate(asked, 1):
        pictures += generate([prompt], seeds)
        if len(pictures) >= _PARTS or number == len(asked):
            yield to_uint8(pictures)
            pictures = []


def to_uint8(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures -> uint8 [N, 3, R, R]."""
    return torch.from_numpy(np.stack([np.asarray(composite_on_grey(picture)) for picture in pictures])).permute(0, 3, 1, 2).contiguous()


def _compare(space: FeatureSpace, side: str, real: Tensor, drawn: Tensor) -> list[Figure]:
    """The figures of `drawn` [2N, D], picture by picture of the captions of `real` [2N, D]."""
    if not space.standard:
        real, drawn = standardize(real, drawn)
    half = len(real) // 2
    halves = [slice(0, half), slice(half, 2 * half)]
    of_drawn, of_real = [], []
    for reference, other in (halves, halves[::-1]):
        of_drawn.append(_values(real[reference], drawn[other]))
        of_real.append(_values(real[reference], real[other]))
    frechet = "fid" if space.standard else "frechet"
    figures = []
    for name in ("kid", frechet, "precision", "recall", "density", "coverage"):
        if name == frechet and not metrics.enough_for_frechet(half, space.width):
            why = f"needs n > {metrics.FRECHET_SHARE} d = {metrics.FRECHET_SHARE * space.width}"
            figures.append(Figure(space.name, space.sha256, space.width, side, name, None, None, None, half, why))
            continue
        key = "frechet" if name == frechet else name
        drawn_mean, real_mean = (fmean(turn[key] for turn in turns) for turns in (of_drawn, of_real))
        std = fmean(turn["std"] for turn in of_drawn) if name == "kid" else None
        figures.append(Figure(space.name, space.sha256, space.width, side, name, drawn_mean, real_mean, std, half))
    return figures


def standardize(real: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Both [N, D], less the mean of `real` and over the root mean square of what remains of it: distances keep their order."""
    mean = real.mean(dim=0)
    scale = (real - mean).square().mean().sqrt().clamp(min=1e-12)
    return (real - mean) / scale, (drawn - mean) / scale


def _values(reference: Tensor, other: Tensor) -> Values:
    """All figures of `other` [N, D]."""
    kid = metrics.kid(reference, other, seeded_rng("pictures", "kid"))
    precision, recall = metrics.precision_recall(reference, other)
    density, coverage = metrics.density_coverage(reference, other)
    values = {"kid": kid.mean, "std": kid.std, "precision": precision, "recall": recall, "density": density, "coverage": coverage}
    if metrics.enough_for_frechet(len(other), other.shape[1]):
        values["frechet"] = metrics.frechet(reference, other)
    return values


def _diversity(space: FeatureSpace, groups: Tensor, real: Tensor, captions: Sequence[str]) -> Figure:
    """Of drawn `groups` [P, S, D]; beside it that of real pictures [N, D] with the same caption, where there are two of one."""
    places: dict[str, list[int]] = {}
    for place, caption in enumerate(captions):
        places.setdefault(caption, []).append(place)
    once = real[[of_one[0] for of_one in places.values()]]
    pairs = [of_one[:2] for of_one in places.values() if len(of_one) > 1]
    why = "" if pairs else "no two real pictures have one caption"
    if len(once) < 2:
        return Figure(
            space.name, space.sha256, space.width, "train", "diversity", None, None, None, len(groups), "all real ones have one caption"
        )
    same = metrics.diversity(real[torch.tensor(pairs)], once) if pairs else None
    count = groups.shape[0] * groups.shape[1]
    return Figure(space.name, space.sha256, space.width, "train", "diversity", metrics.diversity(groups, once), same, None, count, why)
