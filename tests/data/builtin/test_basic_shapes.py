"""The set of the first run: easier than the shapes, with captions that are as true."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from gan_t2i.data.builtin.basic_shapes import BASIC_SHAPES, COLOURS, SHAPES, TASKS, captions, sample_scene
from gan_t2i.data.builtin.shapes import draw_scene, make_shapes
from gan_t2i.data.builtin.shapes_grammar import INVERSE, composition, split_of, vocabulary

SCENES = {split: [sample_scene(random.Random(f"{split} {index}"), split=split) for index in range(1500)] for split in ("train", "heldout")}


def test_pictures_and_captions(tmp_path: Path) -> None:
    out = make_shapes(tmp_path / "set", kind=BASIC_SHAPES, count=40, size=32, progress=False)
    again = make_shapes(tmp_path / "again", kind=BASIC_SHAPES, count=40, size=32, progress=False)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert (again / "metadata.jsonl").read_text() == (out / "metadata.jsonl").read_text()
    assert [line["split"] for line in lines] == ["train"] * 39 + ["heldout"]
    assert {len(line["text"]) for line in lines} == {1, 2}
    for line in lines:
        with Image.open(out / line["file_name"]) as picture:
            assert picture.size == (32, 32)


def test_held_out_compositions_never_occur_in_training() -> None:
    sides = [{composition(scene) for scene in SCENES[split]} for split in ("train", "heldout")]
    assert not sides[0] & sides[1]
    for split, scenes in SCENES.items():
        assert {split_of(scene) for scene in scenes} == {split}
        assert {scene.task for scene in scenes} == set(TASKS)
        assert {thing.shape for scene in scenes for thing in scene.objects} == set(SHAPES)
        assert {thing.colour for scene in scenes for thing in scene.objects} == set(COLOURS)
        assert {scene.relation for scene in scenes} == {None, *vocabulary().relations}


@pytest.mark.parametrize("split", SCENES)
def test_captions_are_true(split: str) -> None:
    for scene in SCENES[split]:
        plain, *other = captions(scene)
        assert all(f"{thing.colour} {thing.shape}" in plain for thing in scene.objects)
        assert len(other) == (scene.relation is not None)
        if scene.count == 1:
            continue
        first, second = scene.objects
        right, down = second.x - first.x, second.y - first.y
        along, across = (down, right) if scene.relation in ("above", "below") else (right, down)
        # captions with "and" read from left to right
        sign = -1 if scene.relation in ("to the right of", "below") else 1
        assert sign * along > 0.43 > 0.07 > abs(across)
        if scene.relation:
            assert other == [f"{plain.split(scene.relation)[1].strip()} {INVERSE[scene.relation]} {plain.split(scene.relation)[0].strip()}"]
        assert draw_scene(scene, 32).getpixel((0, 0)) == vocabulary().backgrounds["white"]
