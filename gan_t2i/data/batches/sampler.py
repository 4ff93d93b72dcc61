"""The n-th picture of a run and its caption, a pure function of (seed, n), so that a run can resume anywhere."""

import bisect
import functools
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.batches.negatives import HardNegatives
from gan_t2i.data.packing import PackedDataset
from gan_t2i.data.settings import DataConfig


@dataclass(frozen=True)
class Batch:
    """N captions, K negative captions for each, and the pictures of n rows: all N, or one process's share."""

    images: Tensor  # uint8 [n, C, R, R] as packed, or float16 latents [n, K, S, S]
    captions: Tensor  # [N], ids
    negatives: Tensor  # [N, K], ids
    negative_mask: Tensor  # bool [N, K], False where a negative is one of the picture's own captions
    shared: Tensor  # bool [N], True where another picture may have the caption too
    texts: tuple[str, ...] | None = None
    """Captions by id where the ids are the batch's own; None where they are the data set's."""


class BatchSampler(Protocol):
    """Endless shuffled passes over the training pictures, each with one of its captions at random."""

    def batch(self, nimg: int, count: int, rows: slice = slice(None)) -> Batch:
        """Return `count` pictures from the `nimg`-th on, of which only those of `rows` are read.

        Everything else is the same whatever the rows, so that processes agree without communication.
        """


class Sampler:
    """A `BatchSampler` of a packed data set. `negatives` has a source for each column; None takes the caption of the picture before.

    A pass also shows one recoloured copy of each training picture that has any, or of a random share of these pictures, and captions are
    drawn by weight: see `recolour_share` and `caption_weights` of the `settings`.
    """

    def __init__(
        self, dataset: PackedDataset, seed: int, negatives: Sequence[HardNegatives | None] = (None,), settings: DataConfig | None = None
    ) -> None:
        settings = settings or DataConfig()
        self.dataset = dataset
        self.seed = seed
        self.negatives = negatives
        self._weights = settings.caption_weights
        self._copies = round(settings.recolour_share * len(dataset.recoloured))  # in a pass
        self.gather: Callable[[Sequence[int]], Tensor] = dataset.gather_packed
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)  # a batch may reach from one pass into the next

    def _shuffle(self, epoch: int) -> np.ndarray:
        items = self.dataset.train
        if self._copies:
            rng = random.Random(f"copies {self.seed} {epoch}")
            copies = [rng.choice(each) for each in self.dataset.recoloured.values()]
            items = np.concatenate([items, copies if self._copies == len(copies) else rng.sample(copies, self._copies)])
        return items[torch.randperm(len(items), generator=seeded_rng(self.seed, "epoch", epoch)).numpy()]

    def item(self, position: int) -> int:
        """Return the index in the data set of the picture at `position` of the endless sequence."""
        epoch, offset = divmod(position, len(self.dataset.train) + self._copies)
        return int(self._order(epoch)[offset])

    def _caption(self, choices: Sequence[int], draw: float) -> int:
        """Return the one of a picture's captions that `draw`, in [0, 1), stands for."""
        weights = itertools.islice(itertools.chain(self._weights, itertools.repeat(self._weights[-1])), len(choices))
        limits = list(itertools.accumulate(weights))
        return choices[bisect.bisect(limits, draw * limits[-1])]

    def batch(self, nimg: int, count: int, rows: slice = slice(None)) -> Batch:
        """See `BatchSampler`."""
        items = [self.item(position) for position in range(nimg, nimg + count)]
        draws = torch.rand(count, generator=seeded_rng(self.seed, "caption", nimg)).tolist()
        own = [self.dataset.caption_ids[item] for item in items]
        captions = [self._caption(choices, draw) for choices, draw in zip(own, draws, strict=True)]
        before = [captions[-1], *captions[:-1]]
        rng = random.Random(f"negatives {self.seed} {nimg}")
        columns = []
        for source in self.negatives:
            found = [source.draw(item, caption, rng) for item, caption in zip(items, captions, strict=True)] if source else before
            columns.append([other if negative is None else negative for negative, other in zip(found, before, strict=True)])
        negatives = torch.tensor(columns).T if columns else torch.empty(count, 0, dtype=torch.int64)
        mask = [[negative not in choices for negative in row] for row, choices in zip(negatives.tolist(), own, strict=True)]
        shared = torch.tensor([caption in self.dataset.shared_captions for caption in captions])
        return Batch(self.gather(items[rows]), torch.tensor(captions), negatives, torch.tensor(mask, dtype=torch.bool), shared)
