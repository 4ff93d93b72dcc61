"""A negative is wrong in one respect, as the scenes know it and not as the words look."""

import random
from collections import Counter

import pytest

from gan_t2i.data.negatives import OneChange, truth
from gan_t2i.data.packing import PackedDataset, pack
from gan_t2i.data.shapes import Scene, make_shapes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    folder = tmp_path_factory.mktemp("negatives")
    return pack(make_shapes(folder / "set", count=4000, size=16, progress=False), folder / "packed", 16, progress=False)


def scene_of(dataset: PackedDataset, item: int) -> Scene:
    return Scene.from_json(dataset.extras[item]["scene"])


def facts(scene: Scene) -> list[Counter[str]]:
    """Ways to list what is said, for two objects in either order."""
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
    drawn = {"x", "y", "r"}
    return min(sum(1 for fact in x - y if fact.split("=")[0] not in drawn) for x in facts(a) for y in facts(b))


def test_one_respect_differs_and_no_caption_is_true(dataset: PackedDataset) -> None:
    negatives = OneChange(dataset)
    owner = {caption: item for item in dataset.train.tolist() for caption in dataset.caption_ids[item]}
    rng = random.Random(0)
    seen: Counter[tuple[str, int]] = Counter()
    for item in dataset.train.tolist():
        drawn = negatives.draw(item, rng)
        if drawn is None:
            seen["none", 0] += 1
            continue
        own, other = scene_of(dataset, item), scene_of(dataset, owner[drawn])
        assert own.task == other.task
        assert truth(own) != truth(other)
        apart = distance(own, other)
        # the same words bound otherwise differ in two
        assert apart == 1 or (own.task in ("two", "relation") and apart == 2), (own, other)
        seen[own.task, apart] += 1
    assert seen["none", 0] < 0.2 * len(dataset.train)
    assert {task for task, _ in seen} == {"single", "position", "two", "relation", "count", "none"}
    assert seen["two", 2] > 0  # bindings
    assert all(seen[task, 1] > 100 for task in ("single", "position", "two", "relation", "count"))


def test_every_respect_is_changed(dataset: PackedDataset) -> None:
    negatives = OneChange(dataset)
    item = next(item for item in dataset.train.tolist() if scene_of(dataset, item).task == "single")
    owner = {caption: item for item in dataset.train.tolist() for caption in dataset.caption_ids[item]}
    own = scene_of(dataset, item)
    rng = random.Random(1)
    changed: Counter[str] = Counter()
    for _ in range(200):
        drawn = negatives.draw(item, rng)
        assert drawn is not None
        other = scene_of(dataset, owner[drawn])
        changed["background"] += own.background != other.background
        for name in ("shape", "colour", "size"):
            changed[name] += getattr(own.objects[0], name) != getattr(other.objects[0], name)
    assert set(changed) == {"background", "shape", "colour", "size"}
    assert min(changed.values()) > 20


def test_held_out_pictures_lend_no_caption(dataset: PackedDataset) -> None:
    negatives = OneChange(dataset)
    trained = {caption for item in dataset.train.tolist() for caption in dataset.caption_ids[item]}
    rng = random.Random(2)
    assert {negatives.draw(item, rng) for item in dataset.train.tolist()} <= trained | {None}


def test_the_same_draws_give_the_same_negatives(dataset: PackedDataset) -> None:
    negatives = [OneChange(dataset), OneChange(dataset)]
    items = dataset.train[:200].tolist()
    first, again = ([each.draw(item, rng) for item in items] for each, rng in zip(negatives, (random.Random(5), random.Random(5)), strict=True))
    assert first == again
