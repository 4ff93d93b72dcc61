"""Which picture, with which of its captions, is shown as the n-th: a pure function of (seed, n), so that a run can go on anywhere."""

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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


class Sampler:
    """Endless shuffled passes over the training pictures of a data set, one random caption a picture.

    Args:
        dataset: packed pictures and captions.
        seed: of the run.
        negatives: the kinds of captions to hold a picture against, "random", "one_change" or "nearest", one for each mention.
        one_change: where "one_change" draws from; made here where it is not given.
        vectors: caption ids -> the encoder's pooled vectors [n, E], for "nearest".
    """

    def __init__(
        self,
        dataset: PackedDataset,
        seed: int,
        negatives: Sequence[str] = ("random",),
        *,
        one_change: OneChange | None = None,
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
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)  # a batch may reach from one pass into the next

    def _shuffle(self, epoch: int) -> np.ndarray:
        items = self.dataset.train
        return items[torch.randperm(len(items), generator=seeded_rng(self.seed, "epoch", epoch)).numpy()]

    def item(self, position: int) -> int:
        """Index in the data set of the picture shown as the `position`-th."""
        epoch, place = divmod(position, len(self.dataset.train))
        return int(self._order(epoch)[place])

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
