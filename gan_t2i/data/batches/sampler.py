"""Which picture, with which of its captions, is shown as the n-th: a pure function of (seed, n), so that a run can go on anywhere."""

import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gan_t2i.core.errors import UsageError
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.batches.negatives import Nearest, OneChange
from gan_t2i.data.packing import PackedDataset


@dataclass(frozen=True)
class Batch:
    """N pictures (or those of the rows that were asked for), the captions of all N, and K captions of other pictures for each."""

    images: Tensor  # uint8 [n, C, R, R], as packed
    captions: Tensor  # [N], ids
    negatives: Tensor  # [N, K], ids
    wrong: Tensor  # bool [N, K], False where a negative is one of the picture's own captions after all


def classes_of(dataset: PackedDataset, column: str | None) -> dict[str, np.ndarray]:
    """The training pictures by their value in a column of the metadata, as JSON, those without one together; without a column all as one class,
    called "". Raises `UsageError` where no picture has the column."""
    if column is None:
        return {"": dataset.train}
    extras = [dataset.extras[item] for item in dataset.train]
    if not any(column in extra for extra in extras):
        known = ", ".join(sorted({key for extra in extras for key in extra})) or "none, for the data have no columns but captions"
        raise UsageError(f"data.balance = {column!r}: no training picture has that column; allowed: {known}")
    classes: dict[str, list[int]] = {}
    for item, extra in zip(dataset.train.tolist(), extras, strict=True):
        classes.setdefault(json.dumps(extra.get(column), sort_keys=True), []).append(item)
    return {name: np.asarray(items, dtype=np.int64) for name, items in classes.items()}


class Sampler:
    """Endless shuffled passes over the training pictures of a data set, one random caption a picture.

    Args:
        dataset: packed pictures and captions.
        seed: of the run.
        negatives: the kinds of captions to hold a picture against, "random", "one_change" or "nearest", one for each mention.
        one_change: where "one_change" draws from; made here where it is not given.
        balance: column of the metadata whose values are shown equally often.
        vectors: caption ids -> the encoder's pooled vectors [n, E], for "nearest".
    """

    def __init__(
        self,
        dataset: PackedDataset,
        seed: int,
        negatives: Sequence[str] = ("random",),
        *,
        one_change: OneChange | None = None,
        balance: str | None = None,
        vectors: Callable[[Sequence[int]], Tensor] | None = None,
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.negatives = negatives
        self._one_change = one_change or (OneChange(dataset) if "one_change" in negatives else None)
        self._nearest = None
        if "nearest" in negatives:
            if vectors is None:
                raise ValueError("nearest negatives need the vectors of the captions")
            self._nearest = Nearest(dataset, vectors, seed)
        self._classes = classes_of(dataset, balance)
        # the pass that a class is in and the next one; the round of classes that a batch begins in, and the next
        self._order = functools.lru_cache(maxsize=2 * len(self._classes))(self._shuffle)
        self._round = functools.lru_cache(maxsize=2)(self._shuffle_classes)

    def _shuffle(self, name: str, epoch: int) -> np.ndarray:
        items = self._classes[name]
        key = ("epoch", epoch, name) if name else ("epoch", epoch)
        return items[torch.randperm(len(items), generator=seeded_rng(self.seed, *key)).numpy()]

    def _shuffle_classes(self, turn: int) -> list[str]:
        names = list(self._classes)
        return [names[place] for place in torch.randperm(len(names), generator=seeded_rng(self.seed, "classes", turn)).tolist()]

    def item(self, position: int) -> int:
        """Which picture is shown as the `position`-th: each turn has every class once, and each class goes through its pictures by itself."""
        turn, place = divmod(position, len(self._classes))
        name = self._round(turn)[place] if len(self._classes) > 1 else next(iter(self._classes))
        epoch, number = divmod(turn, len(self._classes[name]))
        return int(self._order(name, epoch)[number])

    def batch(self, nimg: int, count: int, shown: slice = slice(None)) -> Batch:
        """The pictures nimg .. nimg + count, of which only those of the rows `shown` are read."""
        items = [self.item(position) for position in range(nimg, nimg + count)]
        draws = torch.rand(count, generator=seeded_rng(self.seed, "caption", nimg)).tolist()
        own = [self.dataset.caption_ids[item] for item in items]
        ids = [choices[int(draw * len(choices))] for choices, draw in zip(own, draws, strict=True)]
        rng = random.Random(f"negatives {self.seed} {nimg}")
        columns = [self._column(kind, items, ids, rng) for kind in self.negatives]
        negatives = torch.tensor(columns).T if columns else torch.empty(count, 0, dtype=torch.int64)
        wrong = [[negative not in choices for negative in row] for row, choices in zip(negatives.tolist(), own, strict=True)]
        return Batch(self.dataset.gather_packed(items[shown]), torch.tensor(ids), negatives, torch.tensor(wrong, dtype=torch.bool))

    def _column(self, kind: str, items: list[int], ids: list[int], rng: random.Random) -> list[int]:
        """A negative of that kind for each picture; where there is none, the caption of the picture before."""
        before = [ids[-1], *ids[:-1]]
        if kind == "random":
            return before
        if kind == "nearest":
            assert self._nearest is not None
            found = [self._nearest.draw(item, shown, rng) for item, shown in zip(items, ids, strict=True)]
        else:
            assert self._one_change is not None
            found = [self._one_change.draw(item, rng) for item in items]
        return [other if drawn is None else drawn for drawn, other in zip(found, before, strict=True)]
