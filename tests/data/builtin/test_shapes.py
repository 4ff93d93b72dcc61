"""The shapes data set: captions that are true of their pictures, disjoint splits, the same bytes every time."""

import hashlib
import json
import math
import random
from pathlib import Path

import pytest
from PIL import Image

from gan_t2i.core.errors import UsageError
from gan_t2i.core.words import split_words
from gan_t2i.data.builtin.shapes import TASKS, Scene, Thing, captions, composition, draw_scene, make_shapes, sample_scene, split_of, vocabulary
from gan_t2i.data.builtin.shapes_grammar import known_words

SCENES = [sample_scene(random.Random(f"test {index}")) for index in range(3000)]


def one(shape: str, colour: str, position: str | None = None, size: str = "") -> Scene:
    return Scene("position" if position else "single", "white", (Thing(shape, colour, size, position, 0.5, 0.5, 0.2),))


def pair(task: str, relation: str | None = None) -> Scene:
    circle = Thing("circle", "blue", "", None, 0.25, 0.5, 0.17)
    triangle = Thing("triangle", "orange", "", None, 0.75, 0.5, 0.17)
    return Scene(task, "cream", (circle, triangle), relation)  # type: ignore[arg-type]


def swapped(scene: Scene, relation: str | None) -> Scene:
    return Scene(scene.task, scene.background, scene.objects[::-1], relation)


def digest(folder: Path) -> str:
    lines = [f"{path.relative_to(folder)} {path.read_bytes().hex()}" for path in sorted(folder.rglob("*")) if path.is_file()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_records_and_pictures(tmp_path: Path) -> None:
    out = make_shapes(tmp_path / "set", count=120, size=32, heldout=20, progress=False)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines] == ["train"] * 100 + ["heldout"] * 20
    assert len(list((out / "images").iterdir())) == 120
    for line in lines:
        scene = Scene.from_json(line["scene"])
        assert scene.to_json() == line["scene"]
        assert split_of(scene) == line["split"]
        assert line["text"][0] == captions(scene)[0]
        assert set(line["text"]) <= set(captions(scene))
        assert len(set(line["text"])) == 3
        with Image.open(out / line["file_name"]) as picture:
            assert picture.mode == "RGB"
            assert picture.size == (32, 32)
            assert picture.tobytes() == draw_scene(scene, 32).tobytes()


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first, again, other = (
        digest(make_shapes(tmp_path / str(index), count=70, size=16, seed=seed, progress=False)) for index, seed in enumerate([5, 5, 6])
    )
    assert first == again != other


def test_a_picture_does_not_depend_on_the_count(tmp_path: Path) -> None:
    few = make_shapes(tmp_path / "few", count=20, size=16, heldout=0, progress=False)
    many = make_shapes(tmp_path / "many", count=100, size=16, heldout=50, progress=False)
    assert (few / "metadata.jsonl").read_text().splitlines() == (many / "metadata.jsonl").read_text().splitlines()[:20]
    assert (few / "images/000019.png").read_bytes() == (many / "images/000019.png").read_bytes()


def test_held_out_compositions_never_occur_in_train() -> None:
    words = vocabulary()
    train = [scene for scene in SCENES if split_of(scene) == "train"]
    heldout = [scene for scene in SCENES if split_of(scene) == "heldout"]
    assert not {composition(scene) for scene in train} & {composition(scene) for scene in heldout}
    assert 0.04 < len(heldout) / len(SCENES) < 0.14
    assert {scene.task for scene in heldout} == set(TASKS)
    alone = {(scene.objects[0].shape, scene.objects[0].colour) for scene in train if scene.count == 1}
    out = {(shape, colour) for shape in words.shapes for colour in words.colours if split_of(one(shape, colour)) == "heldout"}
    assert 5 <= len(out) <= 10
    assert not alone & out
    assert {shape for shape, _ in alone} == set(words.shapes)
    assert {colour for _, colour in alone} == set(words.colours)
    assert {scene.objects[0].position for scene in train if scene.task == "position"} == set(words.positions)
    assert {scene.relation for scene in train if scene.task == "relation"} == set(words.relations)


def test_composition_ignores_the_order_of_words() -> None:
    above = pair("relation", "above")
    assert composition(above) == composition(swapped(above, "below")) != composition(swapped(above, "above"))
    left = pair("relation", "to the left of")
    assert composition(left) == composition(swapped(left, "to the right of"))
    assert composition(pair("two")) == composition(swapped(pair("two"), None))
    counted = Scene("count", "white", one("star", "purple").objects)
    assert composition(counted) == composition(one("star", "purple"))


@pytest.mark.parametrize("task", TASKS)
def test_sampling_one_task_and_split(task: str) -> None:
    for split in ("train", "heldout"):
        scene = sample_scene(random.Random(1), task=task, split=split)  # type: ignore[arg-type]
        assert scene.task == task
        assert split_of(scene) == split


def test_everything_is_inside_and_apart() -> None:
    for scene in SCENES:
        for thing in scene.objects:
            assert thing.r <= min(thing.x, thing.y, 1 - thing.x, 1 - thing.y), scene
        for index, a in enumerate(scene.objects):
            for b in scene.objects[:index]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.r + b.r + 0.04, scene


def test_the_words_are_true_of_the_scene() -> None:
    words = vocabulary()
    for scene in SCENES:
        first, second = scene.objects[0], scene.objects[-1]
        assert all(thing.colour not in words.never_on.get(scene.background, ()) for thing in scene.objects)
        if scene.task in ("single", "position"):
            assert abs(first.r / words.sizes[first.size] - 1) < 0.081
        if scene.task == "position":
            x, y = words.positions[first.position or ""]
            assert max(abs(first.x - x), abs(first.y - y)) < 0.0401
        if scene.task in ("two", "relation"):
            assert first.colour != second.colour
        if scene.task == "relation":
            dx, dy = second.x - first.x, second.y - first.y
            along, across = {"to the left of": (dx, dy), "to the right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[
                scene.relation or ""
            ]
            assert along > 0.3
            assert abs(across) < 0.21 * along
        if scene.task == "count":
            assert len({(thing.shape, thing.colour) for thing in scene.objects}) == 1


@pytest.mark.parametrize("index", range(0, 60, 3))
def test_the_drawn_pixels_show_the_objects(index: int) -> None:
    scene, size = SCENES[index], 128
    words, picture = vocabulary(), draw_scene(SCENES[index], size)
    for thing in scene.objects:
        colour, r = words.colours[thing.colour], thing.r * size
        box = [round(value * size) for value in (thing.x - thing.r, thing.y - thing.r, thing.x + thing.r, thing.y + thing.r)]
        covered = sum(count for count, rgb in picture.crop(tuple(box)).getcolors(size * size) if rgb == colour)  # type: ignore[arg-type]
        assert 0.2 < covered / (4 * r * r) < 1.05, thing
        at_the_edge = picture.getpixel((max(0, math.floor(box[0]) - 2), max(0, math.floor(box[1]) - 2)))
        assert at_the_edge == words.backgrounds[scene.background]
    assert picture.getpixel((0, 0)) == words.backgrounds[scene.background]


@pytest.mark.parametrize("size", [32, 64, 100])
def test_the_same_shape_at_any_size(size: int) -> None:
    for scene in SCENES[:12]:
        fine = draw_scene(scene, size * 4).reduce(4)
        drawn = draw_scene(scene, size)
        worst = max(abs(a - b) for a, b in zip(fine.tobytes(), drawn.tobytes(), strict=True))
        assert worst < 48, (scene, worst)  # of 255: the same edges within a fifth of a pixel


def test_wordings() -> None:
    examples = {
        "a large red star on a white background": one("star", "red", size="large"),
        "a blue circle to the left of an orange triangle on cream": pair("relation", "to the left of"),
        "an orange triangle right of a blue circle on a cream background": pair("relation", "to the left of"),
        "an orange triangle and a blue circle on a cream background": pair("two"),
        "on a white background, a red star in the top left corner": one("star", "red", "in the top left corner"),
        "a red cross in the middle of a white background": one("cross", "red", "in the center"),
        "three red crosses on white": Scene("count", "white", one("cross", "red").objects * 3),
        "4 red stars on a white background": Scene("count", "white", one("star", "red").objects * 4),
        "one red star on a white background": Scene("count", "white", one("star", "red").objects),
    }
    for caption, scene in examples.items():
        assert caption in captions(scene)
    assert captions(one("star", "red"))[0] == "a red star on a white background"
    for scene in SCENES[:200]:
        wordings = captions(scene)
        assert len(wordings) == len(set(wordings)) >= 3
        assert not any("a o" in wording or "  " in wording for wording in wordings)


@pytest.mark.parametrize("values", [{"count": 0}, {"size": 8}, {"size": 5000}, {"count": 5, "heldout": 6}, {"heldout": -1}])
def test_refuses_numbers_out_of_range(tmp_path: Path, values: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must be"):
        make_shapes(tmp_path / "set", progress=False, **values)
    assert not list(tmp_path.iterdir())


def test_refuses_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        make_shapes(tmp_path, count=2, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_known_words_are_those_of_every_caption() -> None:
    used = {word for scene in SCENES for caption in captions(scene) for word in split_words(caption)}
    assert used == known_words()
    assert split_words("A red heart, on light-blue!") == ["a", "red", "heart", "on", "light", "blue"]
