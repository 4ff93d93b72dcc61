"""The compositional benchmark: does the model draw a known thing in a known style that training never showed together?

For data of the same things in several styles, as `gan-t2i data make icons` joins them. Some cells of style x thing are held out, and some
things from every style; the data hold the true drawing of each. The figures:

| figure | of | is |
|---|---|---|
| `r1` | held-out drawings | the share nearest to the true drawing among `CANDIDATES` of the same style and of other things |
| `style` | held-out drawings | the share in the style that was asked for, by the judge of `styles.py` |
| `caption_r1` | held-out things | R@1 of `retrieval.py`, among the captions of held-out things |
| `diversity` | captions without a style | that among seeds, where 1 is that of different things |

Real pictures' own scores stand beside them: for `r1` of the other styles' drawings of the thing, for `diversity` of all its drawings, and for
the others of the true drawings. D features, S seeds.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.images import sheet
from gan_t2i.core.log import bar_options
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.core.weights import hash_state
from gan_t2i.data.builtin.icons import CELL, THING
from gan_t2i.data.packing import PackedDataset
from gan_t2i.evaluation import metrics
from gan_t2i.evaluation.features import FeatureSpace
from gan_t2i.evaluation.matcher import Pairs
from gan_t2i.evaluation.pictures import FEATURES, PROMPTS, SEEDS, embed_generated, embed_real
from gan_t2i.evaluation.results import Generate, Result
from gan_t2i.evaluation.retrieval import RetrievalTask, heldout_pairs, run_retrieval
from gan_t2i.evaluation.styles import prepare_judge

CANDIDATES = 100
LIMIT = 400  # default number of held-out drawings of each kind
_ROWS = 24  # of the sheet, for each kind
Item = TypeVar("Item")


class Drawing(NamedTuple):
    """The columns of a picture."""

    style: str
    thing: str
    heldout: str


@dataclass(frozen=True)
class Figure:
    """One figure of generated pictures with its standard error, the same of real ones, and that of chance."""

    network: str
    sha256: str
    kind: str
    name: str
    generated: float
    error: float | None
    real: float
    chance: float | None
    count: int  # drawings, or captions

    def line(self) -> str:
        values = (self.generated, self.error, self.real, self.chance)
        columns = "  ".join(f"{value:9.3f}" if value is not None else f"{'-':>9}" for value in values)
        return f"{self.network:18}  {self.sha256[:12]}  {self.kind:5}  {self.name:10}  {columns}  {self.count:5}"


@dataclass(frozen=True)
class CellsResult(Result):
    """All figures, notes on what was left out, and rows of drawn pictures, the true one last, by caption."""

    suite: ClassVar = "cells"
    defaults: ClassVar = {"features": "+".join(FEATURES), "limit": LIMIT, "seeds": SEEDS}

    features: str
    """Names of the networks, joined by +."""
    limit: int
    seeds: int
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    rows: tuple[tuple[str, Sequence[Image.Image]], ...]

    def scalars(self) -> dict[str, float]:
        return {f"Metrics/cells/{f.network}/{f.kind}_{f.name}": f.generated for f in self.figures}

    def table(self) -> str:
        """A line per figure, with the network and the start of its hash."""
        head = f"{'features':18}  {'hash':12}  {'kind':5}  {'figure':10}"
        head += f"  {'generated':>9}  {'+-':>9}  {'real':>9}  {'chance':>9}  {'n':>5}"
        return "\n".join([head, *(figure.line() for figure in self.figures), *self.notes])

    def to_json(self) -> dict[str, Any]:
        values = {"features": self.features, "limit": self.limit, "seeds": self.seeds}
        return {"suite": self.suite, **values, "figures": [asdict(figure) for figure in self.figures], "notes": self.notes}

    def sheet(self) -> Image.Image:
        captions, rows = zip(*self.rows, strict=True)
        return sheet(rows, captions)


class Drawings:
    """The drawings of a data set, by style and by thing."""

    def __init__(self, dataset: PackedDataset) -> None:
        self.dataset = dataset
        self.drawings: dict[int, Drawing] = {}
        self.by_style: dict[str, list[int]] = defaultdict(list)
        self.by_thing: dict[str, list[int]] = defaultdict(list)
        for item, extra in enumerate(dataset.extras):
            drawing = Drawing(*(extra.get(name) or "" for name in Drawing._fields))
            if all(isinstance(value, str) for value in drawing) and drawing.style and drawing.thing:
                self.drawings[item] = drawing
                self.by_style[drawing.style].append(item)
                self.by_thing[drawing.thing].append(item)
        self.train = [item for item in dataset.train.tolist() if item in self.drawings]
        self.styles = sorted({self.drawings[item].style for item in self.train})

    def caption(self, item: int) -> str:
        return self.dataset.captions[self.dataset.caption_ids[item][0]]

    def of_other_styles(self, item: int) -> list[int]:
        """The drawings of the same thing in other styles."""
        own = self.drawings[item]
        return [other for other in self.by_thing[own.thing] if self.drawings[other].style != own.style]

    def candidates(self, item: int, rng: torch.Generator) -> list[int]:
        """The drawing, then up to `CANDIDATES` - 1 random ones of the same style and of other things."""
        own = self.drawings[item]
        others = [other for other in self.by_style[own.style] if self.drawings[other].thing != own.thing]
        return [item, *_shuffled(others, rng)[: CANDIDATES - 1]]

    def heldout(self, kind: str) -> list[int]:
        """The held-out drawings in styles of training, of things that another style draws too, shuffled."""
        found = [item for item in self.dataset.heldout.tolist() if item in self.drawings and self.drawings[item].heldout == kind]
        found = [item for item in found if self.drawings[item].style in self.styles and self.of_other_styles(item)]
        return _shuffled(found, seeded_rng("cells", kind))

    def labels(self, items: Sequence[int]) -> list[int]:
        """The numbers of the drawings' styles."""
        return [self.styles.index(self.drawings[item].style) for item in items]

    def without_style(self) -> list[tuple[str, list[int]]]:
        """For each thing in random order, the first caption that several styles share, with a training drawing of each."""
        by_caption: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
        for item in self.train:
            for caption in self.dataset.caption_ids[item]:
                by_caption[self.drawings[item].thing, caption].setdefault(self.drawings[item].style, item)
        found: dict[str, tuple[str, list[int]]] = {}
        for (thing, caption), items in by_caption.items():
            if len(items) > 1:
                found.setdefault(thing, (self.dataset.captions[caption], list(items.values())))
        return _shuffled(list(found.values()), seeded_rng("cells", "without style"))


def _shuffled(items: Sequence[Item], rng: torch.Generator) -> list[Item]:
    return [items[index] for index in torch.randperm(len(items), generator=rng).tolist()]


def check_cells(dataset: PackedDataset) -> None:
    """Raises `GanT2IError` where no cell of style x thing is held out."""
    if not Drawings(dataset).heldout(CELL):
        raise GanT2IError(
            "evaluate cells needs pictures with the columns style, thing and heldout, some of them held-out cells, as gan-t2i data make icons "
            "writes them; these have none"
        )


def run_cells(
    generate: Generate,
    dataset: PackedDataset,
    spaces: Sequence[FeatureSpace],
    device: torch.device,
    retrieval: Callable[[], RetrievalTask],
    *,
    limit: int = LIMIT,
    seeds: int = SEEDS,
) -> CellsResult:
    """Generate the captions of up to `limit` held-out drawings of each kind with `seeds` >= 2 seeds each, and compare them with the true ones.

    `r1` and `diversity` are measured in each of `spaces`; `retrieval`, for held-out things, is called where there are some. Raises
    `GanT2IError` where no cell is held out.
    """
    if seeds < 2 or limit < 2:
        raise ValueError(f"seeds = {seeds}, limit = {limit}: at least two of each")
    check_cells(dataset)
    known, notes = Drawings(dataset), []
    kinds = {kind: known.heldout(kind)[:limit] for kind in (CELL, THING)}
    groups = known.without_style()[:PROMPTS]
    if len(groups) < 2:
        notes.append("diversity: left out; two things are needed of which several styles share a caption")
        groups = []
    judge = prepare_judge(dataset, known.train, known.labels(known.train), device)
    requests = {kind: [(known.caption(item), range(n * seeds, (n + 1) * seeds)) for n, item in enumerate(kinds[kind])] for kind in kinds}
    requests["train"] = [(caption, range(seeds)) for caption, _ in groups]
    with tqdm(total=sum(map(len, requests.values())) * seeds, desc="cells", unit="img", **bar_options()) as bar:
        drawn = {kind: embed_generated(generate, asked, [*spaces, judge], bar) for kind, asked in requests.items() if asked}
    banks = [embed_real(space, dataset, np.arange(len(dataset))) for space in spaces]
    figures: list[Figure] = []
    for kind in (kind for kind in kinds if kind in drawn):
        for space, bank, features in zip(spaces, banks, drawn[kind], strict=False):
            figures.append(_r1(known, kind, kinds[kind], space, bank, features.unflatten(0, (-1, seeds))))
        figures.append(_style(known, kind, kinds[kind], judge, drawn[kind][-1].unflatten(0, (-1, seeds))))
    pairs = heldout_pairs(dataset, kinds[THING])
    if len(pairs) > 1:
        figures.append(_caption_r1(generate, retrieval(), pairs, limit, seeds))
    else:
        notes.append(f"held-out things: left out; two captions are needed, and there are {len(pairs)}")
    for space, bank, features in zip(spaces, banks, drawn.get("train", ()), strict=False):
        figures.append(_diversity(space, bank, features.unflatten(0, (-1, seeds)), [items for _, items in groups]))
    rows = tuple(_row(generate, dataset, *one) for kind in kinds for one in list(zip(requests[kind], kinds[kind], strict=True))[:_ROWS])
    return CellsResult("+".join(space.name for space in spaces), limit, seeds, tuple(figures), tuple(notes), rows)


def _r1(known: Drawings, kind: str, items: Sequence[int], space: FeatureSpace, bank: Tensor, generated: Tensor) -> Figure:
    """The shares of `generated` [N, S, D], and of other styles' drawings in `bank` [all, D], that are nearest to the true drawings `items`."""
    rng = seeded_rng("cells", "candidates", kind)
    candidates = [known.candidates(item, rng) for item in items]

    def shares(queries: Sequence[Tensor]) -> Tensor:
        nearest = [metrics.nearest(some, bank[among])[1] for some, among in zip(queries, candidates, strict=True)]
        return torch.stack([(index == 0).double().mean() for index in nearest])

    real = shares([bank[known.of_other_styles(item)] for item in items])
    return _figure(space, kind, "r1", shares(list(generated)), real, fmean(1 / len(among) for among in candidates))


def _style(known: Drawings, kind: str, items: Sequence[int], judge: FeatureSpace, scores: Tensor) -> Figure:
    """The shares of pictures with `scores` [N, S, styles], and of the true drawings `items`, that the judge finds to be in their style."""
    asked = torch.tensor(known.labels(items))
    real = embed_real(judge, known.dataset, np.array(items)).argmax(dim=1) == asked
    found = scores.argmax(dim=2) == asked[:, None]
    return _figure(judge, kind, "style", found.double().mean(dim=1), real.double(), 1 / len(known.styles))


def _figure(space: FeatureSpace, kind: str, name: str, generated: Tensor, real: Tensor, chance: float) -> Figure:
    """The mean over drawings [N] of each."""
    error = generated.std(correction=0).item() / len(generated) ** 0.5
    return Figure(space.name, space.sha256, kind, name, generated.mean().item(), error, real.mean().item(), chance, len(generated))


def _caption_r1(generate: Generate, task: RetrievalTask, pairs: Pairs, limit: int, seeds: int) -> Figure:
    none = replace(pairs, captions=pairs.captions[:0])
    task = replace(task, train=none, heldout=pairs, recombined=task.recombined[:0])
    scores = run_retrieval(generate, task, limit=limit, seeds=seeds).scores
    real, found = scores["real_heldout"], scores["generated_heldout"]
    return Figure("matcher", hash_state(task.matcher), THING, "caption_r1", found.r1, found.error, real.r1, found.chance, real.count)


def _diversity(space: FeatureSpace, bank: Tensor, generated: Tensor, groups: Sequence[Sequence[int]]) -> Figure:
    """The diversity of `generated` [P, S, D] among seeds, and that of the real drawings of each thing, `groups` of rows of `bank`."""
    rng = seeded_rng("cells", "diversity")
    different = bank[[_shuffled(items, rng)[0] for items in groups]]
    real = fmean(metrics.diversity(bank[list(items)][None], different) for items in groups)
    return Figure(space.name, space.sha256, "train", "diversity", metrics.diversity(generated, different), None, real, None, len(groups))


def _row(generate: Generate, dataset: PackedDataset, asked: tuple[str, Sequence[int]], item: int) -> tuple[str, Sequence[Image.Image]]:
    true = dataset.gather([item])[0].permute(1, 2, 0).numpy()
    return asked[0], [*generate([asked[0]], asked[1]), Image.fromarray(true)]
