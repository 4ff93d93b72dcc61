"""Captions as random encoder outputs, so that tests of networks need no encoder."""

from collections.abc import Callable

import pytest
import torch

from gan_t2i.text.batch import TextBatch

E = 24  # width of the encoder


@pytest.fixture
def make_text() -> Callable[..., TextBatch]:
    """Return a function that makes encoded captions of the given token counts, padded to the longest."""

    def make(*lengths: int, seed: int = 0) -> TextBatch:
        draws = torch.Generator().manual_seed(seed)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        tokens = torch.randn(len(lengths), max(lengths), E, generator=draws) * mask[..., None]
        return TextBatch(tokens, mask, torch.randn(len(lengths), E, generator=draws))

    return make


@pytest.fixture
def pad() -> Callable[[TextBatch, int], TextBatch]:
    """Return a function that appends garbage tokens under a False mask."""

    def add(text: TextBatch, extra: int) -> TextBatch:
        garbage = 1e3 * torch.randn(len(text), extra, E, generator=torch.Generator().manual_seed(9))
        mask = torch.cat([text.mask, torch.zeros(len(text), extra, dtype=torch.bool)], dim=1)
        return TextBatch(torch.cat([text.tokens, garbage], dim=1), mask, text.pooled)

    return add
