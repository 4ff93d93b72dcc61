"""Does a model draw, or does it copy? Each drawn picture's nearest training picture, against the same of real pictures.

A distance means little by itself: real pictures of one style lie near each other too. So held-out real pictures, and training pictures against
all the others, say how near a new picture of this kind lies to the training pictures. The threshold is the 5th percentile of those distances:
a model that copies stays below it far more often than they do. Held-out pictures that look the same as a training picture (`duplicates.py`)
would lower the threshold, and so hide copies: they are counted, and left out of it.

Where the text of a training picture is asked for, its picture is what training wanted, so the figures that tell copying are those of the
recombined captions: halves of two training captions that no picture has together. N training pictures, M looked at, D features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.images import sheet
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.duplicates import COLOUR_SIDE, MAX_COLOUR_DIFFERENCE, MAX_DISTANCE, coarse_colours, difference_hash
from gan_t2i.data.packing import Indices, PackedDataset
from gan_t2i.evaluation.features import FeatureSpace, pixels
from gan_t2i.evaluation.metrics import nearest
from gan_t2i.evaluation.pictures import embed_real, to_uint8
from gan_t2i.evaluation.recombined import recombine

Generate = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Prompts and seeds -> pictures, prompt by prompt, each with its seeds in order."""

LIMIT = 200  # prompts of each kind, unless told
NETWORK = "random"  # unless told
PERCENTILE = 0.05
_BASE = 100  # held-out pictures that a percentile wants; below it the training pictures stand in for them
_LEAST = 20  # training pictures
_QUERIES = 1000  # training pictures that are held against the others
_NEIGHBOURS = 3  # in the sheet
_ROWS = 16


@dataclass(frozen=True)
class Neighbours:
    """Of some pictures: distances [M, k] to the nearest training pictures in one space, and their places [M, k] in the data set."""

    distances: Tensor
    items: Tensor


@dataclass(frozen=True)
class Row:
    """How near pictures of one kind come to the training pictures: the median, the share below the threshold, and how many there are."""

    space: str
    sha256: str
    width: int  # D
    kind: str
    median: float
    below: float
    count: int


@dataclass(frozen=True)
class Drawn:
    """A prompt, its picture, and the nearest training pictures."""

    prompt: str
    kind: str
    picture: Image.Image
    distances: tuple[float, ...]
    items: tuple[int, ...]


@dataclass(frozen=True)
class AuditResult:
    """What an audit found; `closest` are the drawn pictures nearest to training pictures, nearest first."""

    limit: int
    rows: tuple[Row, ...]
    thresholds: dict[str, float]  # of each space
    baseline: str  # what the limit was taken from
    verdict: str
    closest: tuple[Drawn, ...]
    dataset: PackedDataset

    @property
    def changed(self) -> dict[str, int | str]:
        """The settings that are not the defaults, which the names of its files tell."""
        network = self.rows[0].space
        return ({"features": network} if network != NETWORK else {}) | ({"limit": self.limit} if self.limit != LIMIT else {})

    def table(self) -> str:
        """A line for each kind of pictures in each space, the threshold, and the verdict."""
        lines = [f"{'space':18}  {'hash':12}  {'d':>4}  {'pictures':17}  {'median':>8}  {'below':>11}  {'n':>5}"]
        for row in self.rows:
            lines.append(
                f"{row.space:18}  {row.sha256[:12]:12}  {row.width:4}  {row.kind:17}  {row.median:8.4f}  {row.below:11.3f}  {row.count:5}"
            )
        limits = ", ".join(f"{value:.4f} in {space}" for space, value in self.thresholds.items())
        return "\n".join([*lines, f"threshold: {limits}; {self.baseline}", self.verdict])

    def scalars(self) -> dict[str, float]:
        """What TensorBoard shows."""
        return {
            f"Metrics/audit/{row.space}/{row.kind.replace(' ', '_')}_{what}": getattr(row, what)
            for row in self.rows
            for what in ("median", "below")
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values: the figures, and the closest pictures with their nearest training pictures' captions."""
        closest = [
            {"prompt": one.prompt, "kind": one.kind, "distances": one.distances, "items": one.items, "captions": self._captions(one)}
            for one in self.closest
        ]
        rows = [asdict(row) for row in self.rows]
        head = {"limit": self.limit, "thresholds": self.thresholds, "baseline": self.baseline, "verdict": self.verdict}
        return {"suite": "audit", **head, "rows": rows, "closest": closest}

    def sheet(self) -> Image.Image:
        """A row for each of the closest: the drawn picture, then its nearest training pictures, under distances and captions."""
        rows, captions = [], []
        for one in self.closest:
            real = self.dataset.gather(one.items).permute(0, 2, 3, 1).numpy()
            rows.append([one.picture, *map(Image.fromarray, real)])
            found = ", ".join(f"{caption} ({far:.3f})" for caption, far in zip(self._captions(one), one.distances, strict=True))
            captions.append(f"{one.prompt} | {found}")
        return sheet(rows, captions)

    def _captions(self, one: Drawn) -> list[str]:
        return [self.dataset.captions[self.dataset.caption_ids[item][0]] for item in one.items]


def check_audit(dataset: PackedDataset, network: str) -> None:
    """Raises `GanT2IError` where there are too few training pictures, or where the network tells them from others because it learned them."""
    if len(dataset.train) < _LEAST:
        raise GanT2IError(f"an audit needs at least {_LEAST} training pictures, and there are {len(dataset.train)}")
    if network == "matcher":
        raise GanT2IError("--features matcher has learned the training pictures, so new pictures lie farther from them in it: take another")


def run_audit(
    generate: Generate,
    dataset: PackedDataset,
    space: FeatureSpace,
    *,
    prompts: Sequence[str] | None = None,
    limit: int = LIMIT,
    progress: bool = True,
) -> AuditResult:
    """Draw `prompts`, or else up to `limit` training, held-out and recombined captions, and look for each picture's nearest training pictures.

    They are looked for in `space`, whose distances judge, and in pixels. Each prompt has a seed of its own.
    """
    asked = {"own prompts": list(prompts)[:limit]} if prompts else choose_prompts(dataset, limit)
    pictures: dict[str, list[Image.Image]] = {kind: [] for kind in asked}
    with tqdm(total=sum(map(len, asked.values())), desc="audit", unit="img", disable=None if progress else True) as bar:
        for kind, texts in asked.items():
            for seed, text in enumerate(texts):
                pictures[kind] += generate([text], [seed])
                bar.update()
    clean = _not_duplicates(dataset)
    rows: list[Row] = []
    thresholds: dict[str, float] = {}
    spaces = (space, pixels(dataset.resolution))
    measured = [_measure(one, dataset, pictures) for one in spaces]
    for one, found in zip(spaces, measured, strict=True):
        base = found["real held out"].distances[clean] if clean.sum() >= _BASE else found["real training"].distances
        threshold = thresholds[one.name] = torch.quantile(base[:, 0], PERCENTILE).item()
        for kind, neighbours in found.items():
            near = neighbours.distances[:, 0]
            rows.append(Row(one.name, one.sha256, one.width, kind, near.median().item(), (near <= threshold).double().mean().item(), len(near)))
    verdict = _verdict(rows, space.name)
    return AuditResult(limit, tuple(rows), thresholds, _baseline(clean), verdict, _closest(measured[0], asked, pictures), dataset)


def _measure(space: FeatureSpace, dataset: PackedDataset, drawn: Mapping[str, Sequence[Image.Image]]) -> dict[str, Neighbours]:
    """The nearest training pictures of real and of `drawn` pictures, by kind."""
    bank = embed_real(space, dataset, dataset.train)
    centre = bank.mean(dim=0)

    def look(features: Tensor) -> Tensor:
        # as directions from the mean: plain features lie near to everything where they are small, whatever the picture shows
        return features if space.standard else F.normalize(features - centre, dim=1)

    bank = look(bank)
    train = torch.from_numpy(dataset.train)
    result: dict[str, Neighbours] = {}
    if len(dataset.heldout):
        distances, places = nearest(look(embed_real(space, dataset, dataset.heldout)), bank, _NEIGHBOURS)
        result["real held out"] = Neighbours(distances, train[places])
    chosen = torch.randperm(len(bank), generator=seeded_rng("audit", "training"))[:_QUERIES]
    distances, places = nearest(bank[chosen], bank, _NEIGHBOURS + 1)
    # a picture is its own nearest; of equal pictures any may stand first, and the distance is the same
    result["real training"] = Neighbours(distances[:, 1:], train[places[:, 1:]])
    for kind, pictures in drawn.items():
        distances, places = nearest(look(space.embed(to_uint8(pictures))), bank, _NEIGHBOURS)
        result[f"drawn {kind}"] = Neighbours(distances, train[places])
    return result


def choose_prompts(dataset: PackedDataset, limit: int) -> dict[str, list[str]]:
    """Up to `limit` first captions of each side, and as many recombined ones; a kind without any is left out."""
    generator = seeded_rng("audit", "prompts")

    def sample(items: Indices) -> list[str]:
        texts = list(dict.fromkeys(dataset.captions[dataset.caption_ids[item][0]] for item in items.tolist()))
        return [texts[place] for place in torch.randperm(len(texts), generator=generator)[:limit].tolist()]

    kinds = {"train": sample(dataset.train), "held out": sample(dataset.heldout)}
    kinds["recombined"] = recombine(kinds["train"], dataset.captions, limit)
    return {kind: texts for kind, texts in kinds.items() if texts}


def _not_duplicates(dataset: PackedDataset) -> Tensor:
    """[held-out pictures] bool: whether no training picture looks the same."""

    def look(items: Indices) -> tuple[Tensor, Tensor]:
        pictures = [Image.fromarray(dataset.gather([item])[0].permute(1, 2, 0).numpy()) for item in items.tolist()]
        bits = [[(difference_hash(picture) >> bit) & 1 for bit in range(64)] for picture in pictures]
        colours = [coarse_colours(picture).tolist() for picture in pictures]
        return torch.tensor(bits, dtype=torch.float32).reshape(-1, 64), torch.tensor(colours, dtype=torch.float32).reshape(
            -1, 3 * COLOUR_SIDE**2
        )

    train_bits, train_colours = look(dataset.train)
    clean = [torch.zeros(0, dtype=torch.bool)]
    for bits, colours in zip(*(part.split(256) for part in look(dataset.heldout)), strict=True):
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
    """One sentence, from the figures in `space`: pixels find a blurred picture near to many."""
    own = {row.kind: row for row in rows if row.space == space}
    base = own.get("real held out", own["real training"])
    if base.count < _BASE:
        base = own["real training"]
    drawn = [row for kind, row in own.items() if kind.startswith("drawn")]
    # captions that training never showed tell most: there is no training picture to reproduce
    telling = next(
        (row for name in ("recombined", "own prompts", "held out", "train") for row in drawn if row.kind == f"drawn {name}"), drawn[0]
    )
    error = (max(base.below, PERCENTILE) * (1 - base.below) * (1 / telling.count + 1 / base.count)) ** 0.5
    shares = f"{telling.below:.0%} of the pictures ({telling.kind}) lie below the threshold, of real ones {base.below:.0%}"
    if telling.below >= 0.5:
        return f"verdict: copying: {shares}"
    if telling.below > base.below + 2 * error:
        return f"verdict: suspicious, look at the sheet: {shares}"
    return f"verdict: no sign of copying: {shares}"


def _closest(found: dict[str, Neighbours], asked: dict[str, list[str]], pictures: dict[str, list[Image.Image]]) -> tuple[Drawn, ...]:
    everything = [
        Drawn(text, kind, picture, tuple(distances.tolist()), tuple(items.tolist()))
        for kind in asked
        for text, picture, distances, items in zip(
            asked[kind], pictures[kind], found[f"drawn {kind}"].distances, found[f"drawn {kind}"].items, strict=True
        )
    ]
    return tuple(sorted(everything, key=lambda one: one.distances[0])[:_ROWS])
