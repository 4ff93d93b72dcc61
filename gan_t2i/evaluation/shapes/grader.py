"""Whether a picture shows what a prompt of the benchmark asks for.

| task | passes where |
|---|---|
| single | there is one object, of the asked shape and size |
| colours | there is something, all of it in the asked colour, on the asked background |
| position | there is one object, of the asked shape and colour, at the asked one of the nine places |
| two | there are two objects, each with its own shape and colour |
| relations | the same, and the first stands to the second as asked |
| counting | there are as many objects as asked, all of the asked shape and colour |
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gan_t2i.data.builtin.shapes import Scene, Thing
from gan_t2i.evaluation.shapes.parse import Item, View, look
from gan_t2i.evaluation.shapes.prompts import SuiteTask

_APART = 0.1  # of the picture's side, at least, between the centres of two objects of which one is left of the other


@dataclass(frozen=True)
class Grade:
    """Whether a picture passed; in words, what it shows; and what of it is wrong: count, shape, colour, size, place, relation, background."""

    passed: bool
    seen: str
    wrong: tuple[str, ...] = ()


def grade(picture: npt.NDArray[np.uint8], scene: Scene, task: SuiteTask) -> Grade:
    """Grade a picture uint8 [R, R, 3] by the scene that its prompt describes."""
    return grade_view(look(picture), scene, task)


def grade_view(view: View, scene: Scene, task: SuiteTask) -> Grade:
    """Grade what a picture shows by the scene that its prompt describes."""
    wrong = _wrong_colours(view, scene) if task == "colours" else _wrong_objects(view, scene, task)
    return Grade(not wrong, str(view), tuple(wrong))


def _wrong_colours(view: View, scene: Scene) -> list[str]:
    """How many objects, and of which shape, is asked by other tasks."""
    wrong = [] if view.items else ["count"]
    if any(item.colour != scene.objects[0].colour for item in view.items):
        wrong.append("colour")
    return wrong if view.background == scene.background else [*wrong, "background"]


def _wrong_objects(view: View, scene: Scene, task: SuiteTask) -> list[str]:
    """Faults of the objects, each held against the one it is most like."""
    if len(view.items) != scene.count:
        return ["count"]
    return min((_faults(items, scene, task) for items in itertools.permutations(view.items)), key=len)


def _faults(items: Sequence[Item], scene: Scene, task: SuiteTask) -> list[str]:
    """What is wrong where `items` stand for the scene's objects in order."""
    wrong = [fault for item, thing in zip(items, scene.objects, strict=True) for fault in _differences(item, thing, task)]
    if task == "relations" and not _related(items[0], items[1], scene.relation):
        wrong.append("relation")
    return sorted(set(wrong), key=wrong.index)


def _differences(item: Item, thing: Thing, task: SuiteTask) -> list[str]:
    wrong = [] if item.shape == thing.shape else ["shape"]
    if task != "single" and item.colour != thing.colour:
        wrong.append("colour")
    if task == "single" and item.size != thing.size:
        wrong.append("size")
    if task == "position" and item.place != thing.position:
        wrong.append("place")
    return wrong


def _related(first: Item, second: Item, relation: str | None) -> bool:
    """Whether `first` stands in `relation` to `second`: clearly apart that way, and farther than the other way."""
    right, down = second.x - first.x, second.y - first.y
    ways = {"to the left of": (right, down), "to the right of": (-right, down), "above": (down, right), "below": (-down, right)}
    assert relation is not None
    along, across = ways[relation]
    return along > max(_APART, abs(across))
