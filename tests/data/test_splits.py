"""No caption is on both sides of a split, whatever the data say."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.records import Record
from gan_t2i.data.splits import caption_hash, split_by_caption


def record(*captions: str, split: str | None = None) -> Record:
    return Record(Path("/a.png"), captions, "a", split)


def test_captions_are_held_out_with_all_their_pictures_and_stay_so_when_data_grow():
    records = [record(f"caption {index % 500}") for index in range(1000)]
    held = {r.captions[0] for r, side in zip(records, split_by_caption(records, 0.1).heldout, strict=True) if side}
    assert 30 <= len(held) <= 70
    counts = Counter(split_by_caption(records, 0.1).heldout)
    assert counts[True] == 2 * len(held)
    grown = [*records, *(record(f"more {index}") for index in range(500))]
    held_grown = {r.captions[0] for r, side in zip(grown, split_by_caption(grown, 0.1).heldout, strict=True) if side}
    assert held == {caption for caption in held_grown if caption.startswith("caption")}


def test_the_hash_of_a_caption_is_the_same_everywhere():
    assert caption_hash("a red circle") == 0.5497942062118344


@pytest.mark.parametrize("fraction", [1e-12, 1 - 1e-12])
@pytest.mark.parametrize("count", [2, 3])
def test_two_captions_are_enough_for_both_sides(fraction, count):
    split = split_by_caption([record(f"c{index}") for index in range(count)], fraction)
    assert 1 <= sum(split.heldout) <= count - 1


def test_the_rarest_caption_is_held_out_where_the_hash_chooses_none():
    assert split_by_caption([record("a"), record("b"), record("a")], 1e-12).heldout == [False, True, False]


@pytest.mark.parametrize("fraction", [0.02, 1 - 1e-12])
def test_a_single_caption_is_trained_on(fraction):
    assert split_by_caption([record("a"), record("a", "b")], fraction).heldout == [False, False]


def test_nothing_is_held_out_at_fraction_zero_or_where_the_data_say_train():
    assert not any(split_by_caption([record("a"), record("b")], 0).heldout)
    assert not any(split_by_caption([record("a", split="train"), record("b", split="train")], 0.5).heldout)


def test_the_datas_own_split_wins():
    records = [record("a", split="heldout"), record("b", split="train"), record("a"), record("b")]
    assert split_by_caption(records, 0.5).heldout == [True, False, True, False]


def test_a_shared_caption_stays_on_one_side_and_no_record_is_empty():
    records = [record("a", "x", "t", split="heldout"), record("t", "x", "a", split="train"), record("u", "x", split="train")]
    split = split_by_caption(records, 0.5)
    assert split.captions == [("a", "x"), ("t",), ("u",)]
    assert split.heldout == [True, False, False]
    assert split.dropped == 4


def test_a_training_record_whose_captions_are_all_held_out_follows_them():
    records = [record("a", "b", split="heldout"), record("b", split="heldout"), record("a", split="train"), record("t", "a", split="train")]
    split = split_by_caption(records, 0.5)
    assert split.captions == [("a", "b"), ("b",), ("a",), ("t",)]
    assert split.heldout == [True, True, True, False]


def test_splits_without_training_pictures_are_refused():
    for records in ([record("a", split="heldout")], [record("a", split="heldout"), record("a", split="train")]):
        with pytest.raises(GanT2IError, match="no picture is left to train on"):
            split_by_caption(records, 0.1)


def test_no_caption_is_on_both_sides_of_a_random_data_set():
    rng = np.random.default_rng(0)
    records = [record(*{f"c{number}": None for number in rng.integers(0, 60, 3)}) for _ in range(200)]
    split = split_by_caption(records, 0.2)
    sides = [
        {c for captions, held in zip(split.captions, split.heldout, strict=True) if held is side for c in captions} for side in (True, False)
    ]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert all(captions and captions[0] == r.captions[0] for captions, r in zip(split.captions, records, strict=True))
