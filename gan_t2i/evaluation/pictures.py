"""Compares generated with real pictures, whatever the captions, by figures that are meaningful for a few thousand pictures.

The pictures of a side (training, held out) are halved at random. Each half in turn is the reference, and the model generates the captions of
the other half; the real pictures of those captions, compared with the same reference, show what a perfect generator would score. Figures are
means over the two turns. A half has N pictures, features have D numbers; `metrics.py` defines each figure and cites its paper.

`own_first` alone compares a picture with the one that its caption belongs to: it is the share of generated pictures that are nearest to their
own among `CANDIDATES` real ones. A model with an autoencoder also shows what its rebuilt real pictures score, which no generator can pass.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.images import to_uint8
from gan_t2i.core.log import bar_options
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.packing import Indices, PackedDataset
from gan_t2i.evaluation import metrics
from gan_t2i.evaluation.features import FeatureSpace
from gan_t2i.evaluation.results import Generate, Result

Rebuild = Callable[[Tensor], Tensor]
"""Pictures as packed, uint8 [N, C, R, R] -> the same after the autoencoder, uint8 [N, 3, R, R]."""

FEATURES = ("random", "matcher")  # default networks: both need no download, and they share no training
LIMIT = 2000  # default number of pictures per side
SEEDS = 4  # default number of pictures per prompt for the diversity
PROMPTS = 64  # prompts for the diversity
CANDIDATES = 100  # real pictures among which a generated one must find its own
LEAST = 50  # pictures in a half, at least
_CHUNK = 64  # pictures embedded at a time


@dataclass(frozen=True)
class Figure:
    """One figure of generated pictures, and the same figure of real ones; None with the reason in `why` where it cannot be computed.

    `rebuilt` is the figure of real pictures that the model's autoencoder has encoded and decoded.
    """

    network: str
    sha256: str
    width: int  # D
    side: str
    name: str
    generated: float | None
    real: float | None
    std: float | None  # standard deviation of KID over its subsets
    count: int  # N, or the number of pictures compared for diversity
    why: str = ""
    rebuilt: float | None = None

    def line(self) -> str:
        values = (self.generated, self.std, self.rebuilt, self.real)
        columns = "  ".join(f"{value:9.4f}" if value is not None else f"{'-':>9}" for value in values)
        start = f"{self.network:18}  {self.sha256[:12]}  {self.width:4}  {self.side:7}  {self.name:9}"
        return f"{start}  {columns}  {self.count:5}  {self.why}".rstrip()


@dataclass(frozen=True)
class PicturesResult(Result):
    """All figures, and notes on what was left out."""

    suite: ClassVar = "pictures"
    defaults: ClassVar = {"features": "+".join(FEATURES), "limit": LIMIT, "seeds": SEEDS}

    limit: int
    seeds: int
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]

    @property
    def features(self) -> str:
        """Names of the networks, joined by +."""
        return "+".join(dict.fromkeys(figure.network for figure in self.figures))

    def scalars(self) -> dict[str, float]:
        values = {f"Metrics/pictures/{f.network}/{f.side}_{f.name}": f.generated for f in self.figures}
        return {name: value for name, value in values.items() if value is not None}

    def table(self) -> str:
        """A line per figure, with the network, the start of its hash, D and N."""
        head = f"{'features':18}  {'hash':12}  {'d':>4}  {'side':7}  {'figure':9}"
        head += f"  {'generated':>9}  {'std':>9}  {'rebuilt':>9}  {'real':>9}  {'n':>5}"
        return "\n".join([head, *(figure.line() for figure in self.figures), *self.notes])

    def to_json(self) -> dict[str, Any]:
        figures = [{"drawn" if name == "generated" else name: value for name, value in asdict(figure).items()} for figure in self.figures]
        return {**super().to_json(), "figures": figures}


def check_enough(dataset: PackedDataset, limit: int = LIMIT) -> None:
    """Raises `GanT2IError` where there are too few training pictures to compare."""
    if min(limit, len(dataset.train)) < 2 * LEAST:
        raise GanT2IError(
            f"evaluate pictures compares halves of at least {LEAST} training pictures: {2 * LEAST} are needed, and there are "
            f"{min(limit, len(dataset.train))} (of {len(dataset.train)}, with limit {limit})"
        )


def run_pictures(
    generate: Generate,
    dataset: PackedDataset,
    spaces: Sequence[FeatureSpace],
    *,
    limit: int = LIMIT,
    seeds: int = SEEDS,
    rebuild: Rebuild | None = None,
) -> PicturesResult:
    """Compare up to `limit` pictures of each side with generated ones for the same captions, each with its own seed, in each of `spaces`.

    `rebuild` passes pictures through the model's autoencoder, if it has one.

    The diversity is that of `seeds` >= 2 pictures of up to `PROMPTS` training captions. A held-out side with fewer than twice `LEAST` pictures
    is left out, with a note. Raises `GanT2IError` where the training side has fewer.
    """
    if seeds < 2:
        raise ValueError(f"seeds = {seeds}: at least two, for the diversity among them")
    check_enough(dataset, limit)
    sides: dict[str, Indices] = {}
    for side, items in (("train", dataset.train), ("heldout", dataset.heldout)):
        order = torch.randperm(len(items), generator=seeded_rng("pictures", side))
        sides[side] = items[order[:limit].numpy()]
    notes = []
    if len(sides["heldout"]) < 2 * LEAST:
        notes.append(f"heldout: left out; {2 * LEAST} pictures are needed, and there are {len(sides.pop('heldout'))}")
    first = [dataset.captions[ids[0]] for ids in dataset.caption_ids]
    captions = [first[item] for item in sides["train"].tolist()]
    prompts = list(dict.fromkeys(captions))[:PROMPTS]
    uses = Counter(caption for caption in first)
    figures: list[Figure] = []
    total = sum(map(len, sides.values())) + len(prompts) * seeds
    with tqdm(total=total, desc="pictures", unit="img", **bar_options()) as bar:
        generated = {
            side: embed_generated(generate, [(first[item], [n]) for n, item in enumerate(items)], spaces, bar) for side, items in sides.items()
        }
        by_prompt = embed_generated(generate, [(prompt, range(seeds)) for prompt in prompts], spaces, bar)
    real = {side: [embed_real(space, dataset, items) for space in spaces] for side, items in sides.items()}
    rebuilt = {side: [embed_real(space, dataset, items, rebuild) if rebuild else None for space in spaces] for side, items in sides.items()}
    for number, space in enumerate(spaces):
        for side in sides:
            own, drawn, again = real[side][number], generated[side][number], rebuilt[side][number]
            figures += _compare(space, side, own, drawn, again)
            once = torch.tensor([index for index, item in enumerate(sides[side].tolist()) if uses[first[item]] == 1], dtype=torch.int64)
            figures.append(_own_first(space, side, own[once], drawn[once], None if again is None else again[once]))
        groups = by_prompt[number].unflatten(0, (len(prompts), seeds))
        figures.append(_diversity(space, groups, real["train"][number], captions))
    return PicturesResult(limit, seeds, tuple(figures), tuple(notes))


def embed_real(space: FeatureSpace, dataset: PackedDataset, items: Indices, rebuild: Rebuild | None = None) -> Tensor:
    """Features [N, D] of the pictures at `items`, rebuilt where `rebuild` is given; few of them are in memory at a time."""
    parts = torch.from_numpy(items).split(_CHUNK)
    return torch.cat([space.embed(rebuild(dataset.gather_packed(part)) if rebuild else dataset.gather(part)) for part in parts])


def embed_generated(
    generate: Generate, requests: Sequence[tuple[str, Sequence[int]]], spaces: Sequence[FeatureSpace], bar: Any
) -> list[Tensor]:
    """Features [N, D], in each of `spaces`, of the pictures generated for each (prompt, seeds), in order; few are in memory at a time."""
    found: list[list[Tensor]] = [[] for _ in spaces]
    pictures: list[Image.Image] = []
    for number, (prompt, seeds) in enumerate(requests, 1):
        pictures += generate([prompt], seeds)
        bar.update(len(seeds))
        if len(pictures) >= _CHUNK or number == len(requests):
            batch, pictures = to_uint8(pictures), []
            for features, space in zip(found, spaces, strict=True):
                features.append(space.embed(batch))
    return [torch.cat(features) for features in found]


def _compare(space: FeatureSpace, side: str, real: Tensor, generated: Tensor, rebuilt: Tensor | None) -> list[Figure]:
    """The figures of `generated` [2N, D], which has a picture for the caption of each of `real` [2N, D], and of `rebuilt` ones [2N, D]."""
    if not space.standard:
        rebuilt = None if rebuilt is None else standardize(real, rebuilt)[1]
        real, generated = standardize(real, generated)
    half = len(real) // 2
    halves = [slice(0, half), slice(half, 2 * half)]
    turns = (halves, halves[::-1])
    of_generated, of_real, of_rebuilt = (
        [_values(real[reference], x[other]) for reference, other in turns] if x is not None else [] for x in (generated, real, rebuilt)
    )
    figure = functools.partial(Figure, space.name, space.sha256, space.width, side)
    figures = []
    for name in ("kid", "frechet", "precision", "recall", "density", "coverage"):
        title = "fid" if name == "frechet" and space.standard else name
        if name in of_real[0]:
            generated_mean, real_mean = (fmean(values[name] for values in both) for both in (of_generated, of_real))
            std = fmean(values["std"] for values in of_generated) if name == "kid" else None
            rebuilt_mean = fmean(values[name] for values in of_rebuilt) if of_rebuilt else None
            figures.append(figure(title, generated_mean, real_mean, std, half, rebuilt=rebuilt_mean))
        else:
            why = f"needs n > {metrics.FRECHET_SHARE} d = {metrics.FRECHET_SHARE * space.width}"
            figures.append(figure(title, None, None, None, half, why))
    return figures


def _own_first(space: FeatureSpace, side: str, real: Tensor, generated: Tensor, rebuilt: Tensor | None) -> Figure:
    """The share of pictures [N, D] nearest to their own among real ones [N, D], over captions with one picture each."""
    figure = functools.partial(Figure, space.name, space.sha256, space.width, side, "own_first")
    if len(real) < CANDIDATES:
        return figure(None, None, None, len(real), f"needs {CANDIDATES} captions with one picture each")
    found, rebuilt_found = (
        None if x is None else metrics.own_first(x, real, CANDIDATES, seeded_rng("pictures", "own_first")) for x in (generated, rebuilt)
    )
    return figure(found, 1.0, None, len(real), rebuilt=rebuilt_found)


def standardize(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Both [N, D] minus the mean of `real`, divided by the root mean square deviation of `real`: distances keep their order."""
    mean = real.mean(dim=0)
    scale = (real - mean).square().mean().sqrt().clamp(min=1e-12)
    return (real - mean) / scale, (generated - mean) / scale


def _values(reference: Tensor, other: Tensor) -> dict[str, float]:
    """All figures of `other` [N, D] against `reference` [N, D], the Frechet distance only where N is large enough."""
    kid, std = metrics.kid(reference, other, seeded_rng("pictures", "kid"))
    precision, recall = metrics.precision_recall(reference, other)
    density, coverage = metrics.density_coverage(reference, other)
    values = {"kid": kid, "std": std, "precision": precision, "recall": recall, "density": density, "coverage": coverage}
    if metrics.enough_for_frechet(len(other), other.shape[1]):
        values["frechet"] = metrics.frechet(reference, other)
    return values


def _diversity(space: FeatureSpace, groups: Tensor, real: Tensor, captions: Sequence[str]) -> Figure:
    """The diversity of generated `groups` [P, S, D], and that of pairs of real pictures [N, D] with the same caption, where there are any."""
    by_caption: dict[str, list[int]] = {}
    for index, caption in enumerate(captions):
        by_caption.setdefault(caption, []).append(index)
    once = real[[indices[0] for indices in by_caption.values()]]
    pairs = [indices[:2] for indices in by_caption.values() if len(indices) > 1]
    figure = functools.partial(Figure, space.name, space.sha256, space.width, "train", "diversity")
    if len(once) < 2:
        return figure(None, None, None, len(groups), "all real pictures have the same caption")
    same = metrics.diversity(real[torch.tensor(pairs)], once) if pairs else None
    why = "" if pairs else "no two real pictures have the same caption"
    return figure(metrics.diversity(groups, once), same, None, groups.shape[0] * groups.shape[1], why)
