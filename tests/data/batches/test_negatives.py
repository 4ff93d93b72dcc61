"""Negatives differ in one respect of their scenes, whatever their words, or are near by their vectors."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gan_t2i.data.batches import negatives as negatives_module
from gan_t2i.data.batches.negatives import Nearest, OneChange, meaning, swapped
from gan_t2i.data.builtin.shapes import Scene, captions, make_shapes, split_of
from gan_t2i.data.packing import PackedDataset, pack


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    folder = tmp_path_factory.mktemp("negatives")
    return pack(make_shapes(folder / "set", count=4000, size=16, progress=False), folder / "packed", 16, progress=False)


def scene_of(dataset: PackedDataset, item: int) -> Scene:
    return Scene.from_json(dataset.extras[item]["scene"])


def facts(scene: Scene) -> list[Counter[str]]:
    """Return the lists of a scene's facts, with two objects in either order."""
    first = scene.objects[0]
    if scene.task not in ("two", "relation"):
        return [Counter({f"{name}={value}": 1 for name, value in (("bg", scene.background), ("n", scene.count), *vars(first).items())})]
    orders = [scene.objects, scene.objects[::-1]]
    relations = [scene.relation, {"above": "below", "below": "above"}.get(str(scene.relation), scene.relation)]
    if scene.relation and "the" in scene.relation:
        relations[1] = "to the right of" if "left" in scene.relation else "to the left of"
    return [
        Counter({f"bg={scene.background}": 1, f"rel={relation}": 1})
        + Counter(f"{i}{name}={getattr(thing, name)}" for i, thing in enumerate(order) for name in ("colour", "shape"))
        for order, relation in zip(orders, relations, strict=True)
    ]


def distance(a: Scene, b: Scene) -> int:
    geometry = {"x", "y", "r"}
    return min(sum(1 for fact in x - y if fact.split("=")[0] not in geometry) for x in facts(a) for y in facts(b))


def test_one_respect_differs_and_no_caption_is_true(dataset: PackedDataset) -> None:
    negatives = OneChange(dataset)
    owner = {caption: item for item in dataset.train.tolist() for caption in dataset.caption_ids[item]}
    rng = random.Random(0)
    counts: Counter[tuple[str, int]] = Counter()
    for item in dataset.train.tolist():
        negative = negatives.draw(item, 0, rng)
        if negative is None or negative >= len(dataset.captions):
            counts["none" if negative is None else "written", 0] += 1
            continue
        own, other = scene_of(dataset, item), scene_of(dataset, owner[negative])
        assert own.task == other.task
        assert meaning(own) != meaning(other)
        apart = distance(own, other)
        # the same words bound otherwise differ in two
        assert apart == 1 or (own.task in ("two", "relation") and apart == 2), (own, other)
        counts[own.task, apart] += 1
    assert counts["none", 0] < 0.2 * len(dataset.train)
    assert {task for task, _ in counts} == {"single", "position", "two", "relation", "count", "none", "written"}
    assert counts["two", 2] > 0  # bindings
    assert all(counts[task, 1] > 50 for task in ("single", "position", "two", "relation", "count"))


def test_every_respect_is_changed(dataset: PackedDataset) -> None:
    negatives = OneChange(dataset)
    item = next(item for item in dataset.train.tolist() if scene_of(dataset, item).task == "single")
    owner = {caption: item for item in dataset.train.tolist() for caption in dataset.caption_ids[item]}
    own = scene_of(dataset, item)
    rng = random.Random(1)
    changed: Counter[str] = Counter()
    for _ in range(200):
        negative = negatives.draw(item, 0, rng)
        assert negative is not None
        other = scene_of(dataset, owner[negative])
        changed["background"] += own.background != other.background
        for name in ("shape", "colour", "size"):
            changed[name] += getattr(own.objects[0], name) != getattr(other.objects[0], name)
    assert set(changed) == {"background", "shape", "colour", "size"}
    assert min(changed.values()) > 20


def test_no_negative_is_held_out(dataset: PackedDataset) -> None:
    negatives = OneChange(dataset)
    trained = {caption for item in dataset.train.tolist() for caption in dataset.caption_ids[item]}
    rng = random.Random(2)
    written = set(range(len(dataset.captions), len(dataset.captions) + len(negatives.captions)))
    assert {negatives.draw(item, 0, rng) for item in dataset.train.tolist()} <= trained | written | {None}


def test_written_captions_swap_colours_or_relations_and_none_is_held_out(dataset: PackedDataset) -> None:
    negatives = OneChange(dataset)
    assert not set(negatives.captions) & set(dataset.captions)
    kinds: Counter[str] = Counter()
    allowed = set(dataset.captions)
    for item in dataset.train.tolist():
        own = scene_of(dataset, item)
        for other in swapped(own):
            assert meaning(other) != meaning(own)
            assert split_of(other) == "train"
            assert not set(captions(other)) & set(captions(own))
            assert distance(own, other) <= 2
            kinds["relation" if other.relation != own.relation else "colours"] += 1
            allowed |= set(captions(other))
    assert set(negatives.captions) <= allowed
    assert min(kinds["relation"], kinds["colours"]) > 500
    pair = next(item for item in dataset.train.tolist() if scene_of(dataset, item).relation)
    rng = random.Random(3)
    found = [negatives.draw(pair, 0, rng) for _ in range(100)]
    assert sum(caption is not None and caption >= len(dataset.captions) for caption in found) > 20


def test_the_same_random_numbers_give_the_same_negatives(dataset: PackedDataset) -> None:
    negatives = [OneChange(dataset), OneChange(dataset)]
    items = dataset.train[:200].tolist()
    first, again = (
        [each.draw(item, 0, rng) for item in items] for each, rng in zip(negatives, (random.Random(5), random.Random(5)), strict=True)
    )
    assert first == again


class Captioned:
    """Pictures with captions and invented vectors: those of a picture are close in direction, whatever their length."""

    def __init__(self, captions: Sequence[Sequence[str]], heldout: int = 0) -> None:
        texts = sorted({text for of_picture in captions for text in of_picture})
        ids = [tuple(texts.index(text) for text in of_picture) for of_picture in captions]
        pictures = np.arange(len(captions))
        trained = sorted({caption for of_picture in ids[heldout:] for caption in of_picture})
        self.dataset: Any = SimpleNamespace(
            captions=texts, caption_ids=ids, train=pictures[heldout:], heldout=pictures[:heldout], train_caption_ids=trained
        )
        draws = torch.Generator().manual_seed(0)
        self.vectors = torch.randn(len(texts), 4, generator=draws)
        for of_picture in ids:
            self.vectors[list(of_picture)] = self.vectors[of_picture[0]] + 1e-3 * torch.randn(len(of_picture), 4, generator=draws)
        self.vectors *= torch.rand(len(texts), 1, generator=draws) * 10 + 0.1

    def take(self, ids: Sequence[int]) -> Tensor:
        return self.vectors[list(ids)]

    def nearest(self, seed: int = 0) -> Nearest:
        return Nearest(self.dataset, self.take, seed)

    def choices(self, negatives: Nearest, item: int, shown: int, count: int = 500) -> set[int | None]:
        rng = random.Random(0)
        return {negatives.draw(item, shown, rng) for _ in range(count)}


@pytest.fixture
def captioned() -> Captioned:
    """Ten of the 40 pictures are held out; they have five captions each, of which two neighbours share one."""
    return Captioned([[f"{picture} seen {way} ways" for way in range(4)] + [f"pair {picture // 2}"] for picture in range(40)], heldout=10)


def test_the_sixteen_nearest_captions_of_other_training_pictures_are_taken(captioned: Captioned) -> None:
    dataset, negatives = captioned.dataset, captioned.nearest()
    trained = {caption for item in dataset.train for caption in dataset.caption_ids[item]}
    for item in (10, 25, 39):
        for shown in dataset.caption_ids[item]:
            others = sorted(trained - set(dataset.caption_ids[item]))
            cosine = torch.cosine_similarity(captioned.vectors[others], captioned.vectors[shown], dim=1)
            assert captioned.choices(negatives, item, shown) == {others[index] for index in cosine.topk(16).indices.tolist()}


def test_the_table_is_the_same_in_chunks(captioned: Captioned, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = captioned.nearest()
    sizes: list[int] = []
    monkeypatch.setattr(negatives_module, "CHUNK_ELEMENTS", 1000)
    take = captioned.take
    monkeypatch.setattr(captioned, "take", lambda ids: sizes.append(len(ids)) or take(ids))
    chunked = captioned.nearest()
    assert max(sizes[1:]) * sizes[0] <= 1000  # the candidates come first
    for item, shown in ((10, 0), (20, 3), (39, 4)):
        caption = captioned.dataset.caption_ids[item][shown]
        assert captioned.choices(chunked, item, caption) == captioned.choices(whole, item, caption)


def test_a_table_that_took_long_is_kept(captioned: Captioned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path))
    captioned.nearest()
    assert not list(tmp_path.rglob("*.npy"))
    monkeypatch.setattr(negatives_module, "LONG_SECONDS", 0.0)
    searched = captioned.choices(captioned.nearest(), 10, captioned.dataset.caption_ids[10][0])
    (kept,) = tmp_path.rglob("*.npy")
    with monkeypatch.context() as patch:
        patch.setattr(negatives_module, "nearest_table", None)
        assert captioned.choices(captioned.nearest(), 10, captioned.dataset.caption_ids[10][0]) == searched
    for damaged in (kept.read_bytes()[:-1], b""):
        kept.write_bytes(damaged)
        assert captioned.choices(captioned.nearest(), 10, captioned.dataset.caption_ids[10][0]) == searched
    captioned.vectors = captioned.vectors.flip(0)  # of another encoder
    assert captioned.choices(captioned.nearest(), 10, captioned.dataset.caption_ids[10][0]) != searched


def test_a_caption_that_differs_in_case_alone_is_not_a_negative() -> None:
    captioned = Captioned([["a red heart"], ["A red  Heart"], ["a blue heart"], ["a red star"], ["a green star"]])
    ids = {text: place for place, text in enumerate(captioned.dataset.captions)}
    expected = {ids[text] for text in ("a blue heart", "a red star", "a green star")}
    negatives = captioned.nearest()
    assert captioned.choices(negatives, 0, ids["a red heart"]) == expected
    assert captioned.choices(negatives, 1, ids["A red  Heart"]) == expected


def test_there_is_no_negative_where_all_captions_are_the_pictures_own() -> None:
    captioned = Captioned([["one", "two"], ["one"]])
    assert captioned.choices(captioned.nearest(), 0, 0, 5) == {None}


def test_many_captions_are_compared_with_a_sample_that_follows_the_seed(captioned: Captioned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negatives_module, "CANDIDATES", 12)

    def every(seed: int) -> set[int | None]:
        negatives, own = captioned.nearest(seed), captioned.dataset.caption_ids
        return set().union(*(captioned.choices(negatives, item, own[item][0], 100) for item in captioned.dataset.train.tolist()))

    assert len(every(0)) == 12
    assert every(0) == every(0)
    assert every(0) != every(1)


def test_a_long_search_says_how_long(captioned: Captioned, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    captioned.nearest()
    assert said == []
    monkeypatch.setattr(negatives_module, "CHUNK_ELEMENTS", 1)  # a caption at a time
    clock = itertools.count(step=2)
    monkeypatch.setattr(negatives_module.time, "perf_counter", lambda: next(clock))
    captioned.nearest()
    assert said == ["finding the nearest captions of 135 takes about 270 seconds"]
