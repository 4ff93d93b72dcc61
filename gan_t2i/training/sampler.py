"""Which picture, with which of its captions, is shown as the n-th: a pure function of (seed, n), so that a run can go on anywhere."""

import functools

import numpy as np
import torch

from gan_t2i.data.packing import PackedDataset
from gan_t2i.runtime import generator_for


class Sampler:
    """Endless shuffled passes over the training pictures of a data set, one random caption a picture.

    Args:
        dataset: packed pictures and captions.
        seed: of the run.
    """

    def __init__(self, dataset: PackedDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> np.ndarray:
        permutation = torch.randperm(len(self.dataset.train), generator=generator_for(self.seed, "epoch", epoch)).numpy()
        return self.dataset.train[permutation]

    def batch(self, nimg: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The pictures nimg .. nimg + count: uint8 [count, 3, R, R], the ids [count] of the captions shown with them, and whether the
        caption shown with the picture before (the last one's, for the first) is none of the picture's own: bool [count]."""
        positions = range(nimg, nimg + count)
        size = len(self.dataset.train)
        items = [int(self._order(position // size)[position % size]) for position in positions]
        draws = torch.rand(count, generator=generator_for(self.seed, "caption", nimg)).tolist()
        captions = [self.dataset.caption_ids[item] for item in items]
        ids = [choices[int(draw * len(choices))] for choices, draw in zip(captions, draws, strict=True)]
        different = [before not in choices for before, choices in zip([ids[-1], *ids[:-1]], captions, strict=True)]
        return self.dataset.gather(items), torch.tensor(ids), torch.tensor(different)
