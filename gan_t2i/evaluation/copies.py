"""Detects copies of training pictures by comparing each generated picture's distance to its nearest training picture with real ones' distances.

A distance means little by itself: real pictures of one style lie near each other too. The distances of held-out pictures to the training
pictures, and of training pictures to the other ones, show how near a new picture of this kind lies. The threshold is the 5th percentile of
those distances: the pictures of a model that copies lie below it far more often. Held-out pictures that look the same as a training picture
(`duplicates.py`) would lower the threshold and hide copies: they are counted, and the threshold does not depend on them.

For a training caption, its own picture is what the model was trained to generate. The verdict therefore rests on recombined captions: halves of
two training captions that no picture has together. N training pictures, M queries, D features.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.images import sheet, to_uint8
from gan_t2i.core.log import bar_options
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.duplicates import COLOUR_SIDE, MAX_COLOUR_DIFFERENCE, MAX_DISTANCE, coarse_colours, difference_hash
from gan_t2i.data.packing import Indices, PackedDataset
from gan_t2i.evaluation.features import FeatureSpace, pixels
from gan_t2i.evaluation.metrics import nearest
from gan_t2i.evaluation.pictures import embed_real
from gan_t2i.evaluation.recombined import recombine, shuffled_captions
from gan_t2i.evaluation.results import Generate, Result

LIMIT = 200  # default number of prompts of each kind
NETWORK = "random"  # default network for the distances
PERCENTILE = 0.05
_BASE = 100  # held-out pictures that the percentile needs; with fewer, the training pictures take their place
_LEAST = 20  # training pictures, at least
_QUERIES = 1000  # training pictures that are compared with the others
_NEIGHBOURS = 3  # per picture in the sheet
_ROWS = 16  # of the sheet


Neighbours = tuple[Tensor, Tensor]
"""Distances [M, k] of some pictures to their nearest training pictures in one space, and the items [M, k] of those in the data set."""


@dataclass(frozen=True)
class Row:
    """Distances of one kind of pictures to the training pictures: the median, the share below the threshold, and the number of pictures."""

    space: str
    sha256: str
    width: int  # D
    kind: str
    median: float
    below: float
    count: int


@dataclass(frozen=True)
class Match:
    """A prompt, the nearest training pictures of its generated picture with their first captions, and the generated picture."""

    prompt: str
    kind: str
    distances: list[float]
    items: list[int]
    captions: list[str]
    picture: Image.Image


@dataclass(frozen=True)
class CopiesResult(Result):
    """Distances of all kinds of pictures; `closest` are the generated pictures nearest to a training picture, nearest first."""

    suite: ClassVar = "copies"
    defaults: ClassVar = {"prompts": "captions", "features": NETWORK, "limit": LIMIT}

    prompts: str
    """Origin of the prompts: the data set's captions, or "own" for the user's."""
    limit: int
    rows: tuple[Row, ...]
    thresholds: dict[str, float]
    """Space -> its threshold."""
    baseline: str
    """The pictures that the thresholds were taken from, in words."""
    verdict: str
    closest: tuple[Match, ...]
    dataset: PackedDataset

    @property
    def features(self) -> str:
        """Name of the network that the verdict rests on."""
        return self.rows[0].space

    def table(self) -> str:
        """A line per kind of pictures in each space, the thresholds, and the verdict."""
        lines = [f"{'space':18}  {'hash':12}  {'d':>4}  {'pictures':17}  {'median':>8}  {'below':>11}  {'n':>5}"]
        for row in self.rows:
            lines.append(
                f"{row.space:18}  {row.sha256[:12]:12}  {row.width:4}  {row.kind:17}  {row.median:8.4f}  {row.below:11.3f}  {row.count:5}"
            )
        limits = ", ".join(f"{value:.4f} in {space}" for space, value in self.thresholds.items())
        return "\n".join([*lines, f"threshold: {limits}; {self.baseline}", self.verdict])

    def scalars(self) -> dict[str, float]:
        return {
            f"Metrics/audit/{row.space}/{row.kind.replace(' ', '_')}_{what}": getattr(row, what)
            for row in self.rows
            for what in ("median", "below")
        }

    def to_json(self) -> dict[str, Any]:
        """The figures, and the closest pictures with the captions of their nearest training pictures."""
        closest = [{name: value for name, value in vars(one).items() if name != "picture"} for one in self.closest]
        values = {"limit": self.limit, "thresholds": self.thresholds, "baseline": self.baseline, "verdict": self.verdict}
        return {"suite": self.suite, **values, "rows": [asdict(row) for row in self.rows], "closest": closest}

    def sheet(self) -> Image.Image:
        """A row per closest picture: the generated one, then its nearest training pictures, under their captions and distances."""
        rows, captions = [], []
        for one in self.closest:
            real = self.dataset.gather(one.items).permute(0, 2, 3, 1).numpy()
            rows.append([one.picture, *map(Image.fromarray, real)])
            found = ", ".join(f"{caption} ({far:.3f})" for caption, far in zip(one.captions, one.distances, strict=True))
            captions.append(f"{one.prompt} | {found}")
        return sheet(rows, captions)


def check_copies(dataset: PackedDataset, network: str) -> None:
    """Raises `UsageError` for a network that was trained on the training pictures and so sets them apart, `GanT2IError` where they are few."""
    if network == "matcher":
        raise UsageError("--features matcher was trained on the training pictures, so new pictures lie farther from them in it: take another")
    if len(dataset.train) < _LEAST:
        raise GanT2IError(f"evaluate copies needs at least {_LEAST} training pictures, and there are {len(dataset.train)}")


def run_copies(
    generate: Generate,
    dataset: PackedDataset,
    space: FeatureSpace,
    *,
    prompts: Sequence[str] | None = None,
    limit: int = LIMIT,
) -> CopiesResult:
    """Generate `prompts`, or else up to `limit` training, held-out and recombined captions, and find each picture's nearest training pictures.

    Distances are measured in `space`, which decides the verdict, and in pixels. Each prompt has its own seed.
    """
    texts_of = {"own prompts": list(prompts)[:limit]} if prompts else choose_prompts(dataset, limit)
    pictures: dict[str, list[Image.Image]] = {kind: [] for kind in texts_of}
    with tqdm(total=sum(map(len, texts_of.values())), desc="copies", unit="img", **bar_options()) as bar:
        for kind, texts in texts_of.items():
            for seed, text in enumerate(texts):
                pictures[kind] += generate([text], [seed])
                bar.update()
    clean = _not_duplicates(dataset)
    rows: list[Row] = []
    thresholds: dict[str, float] = {}
    spaces = (space, pixels(dataset.resolution))
    measured = [_measure(one, dataset, pictures) for one in spaces]
    for one, found in zip(spaces, measured, strict=True):
        nearest_of = {kind: distances[:, 0] for kind, (distances, _) in found.items()}
        base = nearest_of["real held out"][clean] if clean.sum() >= _BASE else nearest_of["real training"]
        threshold = thresholds[one.name] = torch.quantile(base, PERCENTILE).item()
        for kind, near in nearest_of.items():
            rows.append(Row(one.name, one.sha256, one.width, kind, near.median().item(), (near <= threshold).double().mean().item(), len(near)))
    verdict = _verdict(rows, space.name)
    closest = _closest(dataset, measured[0], texts_of, pictures)
    source = "own" if prompts else "captions"
    return CopiesResult(source, limit, tuple(rows), thresholds, _baseline(clean), verdict, closest, dataset)


def _measure(space: FeatureSpace, dataset: PackedDataset, generated: Mapping[str, Sequence[Image.Image]]) -> dict[str, Neighbours]:
    """Kind of pictures -> their nearest training pictures, for real and for `generated` ones; for these, recoloured copies count too."""
    shown = embed_real(space, dataset, dataset.shown)
    centre = shown[: len(dataset.train)].mean(dim=0)

    def normalized(features: Tensor) -> Tensor:
        # Directions from the mean: small feature vectors lie near everything, whatever the picture shows.
        return features if space.standard else F.normalize(features - centre, dim=1)

    shown = normalized(shown)
    bank = shown[: len(dataset.train)]
    found: dict[str, Neighbours] = {}
    if len(dataset.heldout):
        found["real held out"] = nearest(normalized(embed_real(space, dataset, dataset.heldout)), bank, _NEIGHBOURS)
    chosen = torch.randperm(len(bank), generator=seeded_rng("audit", "training"))[:_QUERIES]
    distances, index = nearest(bank[chosen], bank, _NEIGHBOURS + 1)
    # A picture is its own nearest; among equal pictures any may come first, at the same distance.
    found["real training"] = distances[:, 1:], index[:, 1:]
    for kind, pictures in generated.items():  # "drawn" is their name in JSON files and TensorBoard tags
        found[f"drawn {kind}"] = nearest(normalized(space.embed(to_uint8(pictures))), shown, _NEIGHBOURS)
    items = torch.from_numpy(dataset.shown)
    return {kind: (distances, items[index]) for kind, (distances, index) in found.items()}


def choose_prompts(dataset: PackedDataset, limit: int) -> dict[str, list[str]]:
    """Up to `limit` first captions of each side, and as many recombined ones; a kind without any is left out."""
    rng = seeded_rng("audit", "prompts")
    sides = {"train": dataset.train, "held out": dataset.heldout}
    kinds = {kind: shuffled_captions(dataset, items, rng)[:limit] for kind, items in sides.items()}
    kinds["recombined"] = recombine(kinds["train"], dataset.captions, limit)
    return {kind: texts for kind, texts in kinds.items() if texts}


def _not_duplicates(dataset: PackedDataset) -> Tensor:
    """[held-out pictures] bool, True where no training picture looks the same."""

    def describe(items: Indices) -> tuple[Tensor, Tensor]:
        pictures = [Image.fromarray(dataset.gather([item])[0].permute(1, 2, 0).numpy()) for item in items.tolist()]
        bits = [[(difference_hash(picture) >> bit) & 1 for bit in range(64)] for picture in pictures]
        colours = [coarse_colours(picture).tolist() for picture in pictures]
        return torch.tensor(bits, dtype=torch.float32).reshape(-1, 64), torch.tensor(colours, dtype=torch.float32).reshape(
            -1, 3 * COLOUR_SIDE**2
        )

    train_bits, train_colours = describe(dataset.train)
    clean = [torch.zeros(0, dtype=torch.bool)]
    for bits, colours in zip(*(part.split(256) for part in describe(dataset.heldout)), strict=True):
        same = torch.cdist(bits, train_bits, p=1) <= MAX_DISTANCE
        same &= torch.cdist(colours, train_colours, p=torch.inf) <= MAX_COLOUR_DIFFERENCE
        clean.append(~same.any(dim=1))
    return torch.cat(clean)


def _baseline(clean: Tensor) -> str:
    count, twins = int(clean.sum()), int((~clean).sum())
    note = f"{twins} of {len(clean)} held-out pictures look the same as a training picture" if twins else ""
    if count >= _BASE:
        text = f"{100 * PERCENTILE:.0f}% of {count} held-out pictures lie nearer"
        return f"{text} (not counted: {note})" if note else text
    text = f"{100 * PERCENTILE:.0f}% of training pictures lie nearer to another one"
    why = f"of the held-out ones {count} could be used, and {_BASE} are needed"
    return f"{text}; {why}{f' ({note})' if note else ''}"


def _verdict(rows: Sequence[Row], space: str) -> str:
    """One sentence from the figures in `space`, not from those in pixels, where a blurred picture lies near many others."""
    own = {row.kind: row for row in rows if row.space == space}
    base = own.get("real held out", own["real training"])
    if base.count < _BASE:
        base = own["real training"]
    # captions that no training picture has say most: there is no picture to reproduce
    kinds = (f"drawn {name}" for name in ("recombined", "own prompts", "held out", "train"))
    generated = next(own[kind] for kind in kinds if kind in own)
    error = (max(base.below, PERCENTILE) * (1 - base.below) * (1 / generated.count + 1 / base.count)) ** 0.5
    shares = f"{generated.below:.0%} of the pictures ({generated.kind}) lie below the threshold, of real ones {base.below:.0%}"
    if generated.below >= 0.5:
        return f"verdict: copying: {shares}"
    if generated.below > base.below + 2 * error:
        return f"verdict: suspicious, look at the sheet: {shares}"
    return f"verdict: no sign of copying: {shares}"


def _closest(
    dataset: PackedDataset, found: dict[str, Neighbours], texts_of: dict[str, list[str]], pictures: dict[str, list[Image.Image]]
) -> tuple[Match, ...]:
    matches: list[Match] = []
    for kind, texts in texts_of.items():
        distances, items = (of_kind.tolist() for of_kind in found[f"drawn {kind}"])
        captions = [[dataset.captions[dataset.caption_ids[item][0]] for item in row] for row in items]
        matches += map(Match, texts, itertools.repeat(kind), distances, items, captions, pictures[kind])
    return tuple(sorted(matches, key=lambda one: one.distances[0])[:_ROWS])
