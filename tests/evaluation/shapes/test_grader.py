"""The grader: right on real renderings, clean or not, and wrong pictures fail for the right reason."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from gan_t2i.data.builtin.shapes import Scene, Thing, draw_scene, vocabulary
from gan_t2i.evaluation.shapes.grader import Grade, grade_estimate
from gan_t2i.evaluation.shapes.parse import parse_image
from gan_t2i.evaluation.shapes.prompts import SUITE_TASKS, SuiteTask, load_prompts

LEFT, RIGHT = (0.27, 0.5), (0.73, 0.5)


def thing(shape: str, colour: str, at: tuple[float, float] = (0.5, 0.5), r: float = 0.2, size: str = "", position: str | None = None) -> Thing:
    return Thing(shape, colour, size, position, *at, r)


def grade(picture: np.ndarray, scene: Scene, task: SuiteTask) -> Grade:
    return grade_estimate(parse_image(picture), scene, task)


def rendered(scene: Scene, size: int = 32) -> np.ndarray:
    return np.asarray(draw_scene(scene, size))


SINGLE = Scene("single", "cream", (thing("star", "red", r=0.3, size="large"),))
PLACED = Scene("position", "white", (thing("heart", "blue", (0.25, 0.75), position="in the bottom left corner"),))
PAIR = (thing("circle", "green", LEFT, 0.17), thing("ring", "purple", RIGHT, 0.17))
TWO = Scene("two", "gray", PAIR)
BESIDE = Scene("relation", "gray", PAIR, "to the left of")
THREE = Scene("count", "black", tuple(thing("diamond", "pink", at, 0.14) for at in [(0.25, 0.25), (0.75, 0.3), (0.4, 0.75)]))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(
    ("start", "blur", "sigma"), [(0, 0.0, 0.0), (1, 0.5, 0.0), (2, 0.0, 4.0), (3, 0.5, 4.0)], ids=["clean", "blur", "noise", "both"]
)
def test_real_renderings_pass(size: int, start: int, blur: float, sigma: float) -> None:
    """Every fourth prompt, so that each is drawn in both sizes."""
    rng = np.random.default_rng(0)
    for task, prompts in load_prompts().items():
        for prompt in prompts[start::4]:
            picture = np.asarray(draw_scene(prompt.scene, size).filter(ImageFilter.GaussianBlur(blur)))
            noisy = picture + sigma * rng.standard_normal(picture.shape)
            assert grade(noisy.round().clip(0, 255).astype(np.uint8), prompt.scene, task).passed, prompt.caption


@pytest.mark.parametrize("size", [16, 48, 100, 128, 256])
def test_other_sizes(size: int) -> None:
    for scene, task in [
        (SINGLE, "single"),
        (SINGLE, "colours"),
        (PLACED, "position"),
        (TWO, "two"),
        (BESIDE, "relations"),
        (THREE, "counting"),
    ]:
        assert grade(rendered(scene, size), scene, task).passed, task  # type: ignore[arg-type]


def test_the_estimate_is_the_scene_that_was_rendered() -> None:
    for prompts in load_prompts().values():
        for prompt in prompts[::5]:
            estimate = parse_image(rendered(prompt.scene, 64))
            assert estimate.background == prompt.scene.background
            for found in estimate.objects:
                nearest = min(prompt.scene.objects, key=lambda it: abs(it.x - found.x) + abs(it.y - found.y))
                assert (found.shape, found.colour) == (nearest.shape, nearest.colour)
                assert max(abs(found.x - nearest.x), abs(found.y - nearest.y), abs(found.r - nearest.r)) < 0.02


def changed(scene: Scene, **values: object) -> Scene:
    return dataclasses.replace(scene, **values)  # type: ignore[arg-type]


def first(scene: Scene, **values: object) -> Scene:
    """The scene with its first object changed."""
    return changed(scene, objects=(dataclasses.replace(scene.objects[0], **values), *scene.objects[1:]))  # type: ignore[arg-type]


WRONG = [
    ("single", SINGLE, first(SINGLE, shape="cross"), "shape", "large red cross in the center, on cream"),
    ("single", SINGLE, first(SINGLE, r=0.2), "size", "medium red star in the center, on cream"),
    ("single", SINGLE, changed(SINGLE, objects=()), "count", "nothing, on cream"),
    ("colours", SINGLE, first(SINGLE, colour="orange"), "colour", "large orange star in the center, on cream"),
    ("colours", SINGLE, changed(SINGLE, background="white"), "background", "large red star in the center, on white"),
    ("colours", SINGLE, changed(SINGLE, objects=()), "count", "nothing, on cream"),
    ("position", PLACED, first(PLACED, y=0.25), "place", "medium blue heart in the top left corner, on white"),
    ("position", PLACED, first(PLACED, x=0.37), "place", "medium blue heart at (0.37, 0.75), on white"),
    ("position", PLACED, first(PLACED, shape="circle"), "shape", "medium blue circle in the bottom left corner, on white"),
    ("position", PLACED, first(PLACED, colour="cyan"), "colour", "medium cyan heart in the bottom left corner, on white"),
    ("two", TWO, changed(TWO, objects=PAIR[:1]), "count", "medium green circle on the left, on gray"),
    ("two", TWO, first(TWO, colour="purple"), "colour", "medium purple circle on the left, medium purple ring on the right, on gray"),
    ("two", TWO, first(TWO, shape="ring"), "shape", "medium green ring on the left, medium purple ring on the right, on gray"),
    (
        "relations",
        BESIDE,
        changed(BESIDE, objects=(thing("circle", "green", RIGHT, 0.17), thing("ring", "purple", LEFT, 0.17))),
        "relation",
        "medium purple ring on the left, medium green circle on the right, on gray",
    ),
    ("counting", THREE, changed(THREE, objects=THREE.objects[:2]), "count", "small pink diamond"),
    ("counting", THREE, changed(THREE, objects=(*THREE.objects, thing("diamond", "pink", (0.8, 0.8), 0.14))), "count", "small pink diamond"),
    ("counting", THREE, first(THREE, shape="square"), "shape", "small pink square in the top left corner"),
]


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(("task", "wanted", "shown", "fault", "contents"), WRONG, ids=[f"{row[0]}-{row[3]}-{i}" for i, row in enumerate(WRONG)])
def test_a_wrong_picture_fails_for_the_right_reason(task: str, wanted: Scene, shown: Scene, fault: str, contents: str, size: int) -> None:
    assert grade(rendered(wanted, size), wanted, task).passed  # type: ignore[arg-type]
    result = grade(rendered(shown, size), wanted, task)  # type: ignore[arg-type]
    assert not result.passed
    assert result.faults == (fault,)
    assert result.contents.startswith(contents)


def test_swapped_colours_fail() -> None:
    swapped = changed(TWO, objects=(thing("circle", "purple", LEFT, 0.17), thing("ring", "green", RIGHT, 0.17)))
    assert not grade(rendered(swapped), TWO, "two").passed
    mirrored = changed(TWO, objects=(thing("circle", "green", RIGHT, 0.17), thing("ring", "purple", LEFT, 0.17)))
    assert grade(rendered(mirrored), TWO, "two").passed


@pytest.mark.parametrize("relation", ["to the left of", "to the right of", "above", "below"])
def test_relations(relation: str) -> None:
    places = {"to the left of": (LEFT, RIGHT), "to the right of": (RIGHT, LEFT), "above": (LEFT[::-1], RIGHT[::-1])}
    places["below"] = places["above"][::-1]
    a, b = (dataclasses.replace(it, x=x, y=y) for it, (x, y) in zip(PAIR, places[relation], strict=True))
    for other in vocabulary().relations:
        assert grade(rendered(changed(TWO, objects=(a, b))), changed(BESIDE, relation=other), "relations").passed == (other == relation)


def test_a_border_without_a_named_colour_and_specks() -> None:
    picture = draw_scene(SINGLE, 64)
    draw = ImageDraw.Draw(picture)
    for x, y in [(4, 5), (60, 3), (57, 58)]:
        draw.rectangle((x, y, x + 2, y + 2), fill=(0, 0, 0))
    assert grade(np.asarray(picture), SINGLE, "single").passed  # specks are not objects
    loud = Image.new("RGB", (64, 64), (255, 0, 255))
    assert parse_image(np.asarray(loud)).background is None
    assert grade(np.asarray(loud), SINGLE, "colours").faults == ("count", "background")


def test_anything_else_is_a_blob() -> None:
    picture = Image.new("RGB", (64, 64), vocabulary().backgrounds["white"])
    ImageDraw.Draw(picture).rectangle((12, 24, 52, 40), fill=(220, 40, 40))
    assert str(parse_image(np.asarray(picture))) == "large red blob in the center, on white"


@pytest.mark.parametrize("size", [16, 33, 65])
def test_pictures_of_nothing_are_graded_too(size: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stripes = np.zeros((size, size, 3), np.uint8)
    stripes[:, ::7] = 255
    full = np.zeros((size, size, 3), np.uint8)
    full[1:-1, 1:-1] = (220, 40, 40)
    for picture in (noise, stripes, full):
        for task in SUITE_TASKS:
            assert not grade(picture, load_prompts()[task][0].scene, task).passed or task == "colours"


@pytest.mark.parametrize(
    "picture", [np.zeros((32, 32, 3)), np.zeros((32, 16, 3), np.uint8), np.zeros((32, 32), np.uint8)], ids=["float", "oblong", "grey"]
)
def test_refuses_other_arrays(picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[R, R, 3\]"):
        parse_image(picture)
