"""Grades whether a picture shows the scene of its prompt.

| task | a picture passes with |
|---|---|
| single | one object, of the prompt's shape and size |
| colours | any objects, all in the prompt's colour, on its background |
| position | one object, of the prompt's shape and colour, at its one of the nine places |
| two | two objects, each with its own shape and colour |
| relations | the same, and the first in the prompt's relation to the second |
| counting | the prompt's number of objects, all of its shape and colour |
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from gan_t2i.data.builtin.shapes import Scene, Thing
from gan_t2i.evaluation.shapes.parse import ObjectEstimate, SceneEstimate
from gan_t2i.evaluation.shapes.prompts import SuiteTask

_APART = 0.1  # least distance between the centres of related objects, as a fraction of the picture's side


@dataclass(frozen=True)
class Grade:
    """The verdict on one picture."""

    passed: bool
    contents: str
    """The parsed scene, in words."""
    faults: tuple[str, ...] = ()
    """Some of count, shape, colour, size, place, relation and background."""


def grade_estimate(estimate: SceneEstimate, scene: Scene, task: SuiteTask) -> Grade:
    """Grade a parsed picture by the scene that its prompt describes."""
    faults = _colour_faults(estimate, scene) if task == "colours" else _object_faults(estimate, scene, task)
    return Grade(not faults, str(estimate), tuple(faults))


def _colour_faults(estimate: SceneEstimate, scene: Scene) -> list[str]:
    """Faults in the colours alone; other tasks grade number and shapes."""
    faults = [] if estimate.objects else ["count"]
    if any(found.colour != scene.objects[0].colour for found in estimate.objects):
        faults.append("colour")
    return faults if estimate.background == scene.background else [*faults, "background"]


def _object_faults(estimate: SceneEstimate, scene: Scene, task: SuiteTask) -> list[str]:
    """Faults of the objects, matched with the scene's in the order that has the fewest."""
    if len(estimate.objects) != scene.count:
        return ["count"]
    return min((_faults_in_order(objects, scene, task) for objects in itertools.permutations(estimate.objects)), key=len)


def _faults_in_order(objects: Sequence[ObjectEstimate], scene: Scene, task: SuiteTask) -> list[str]:
    """Faults where `objects` are the scene's objects, in its order."""
    faults = [fault for found, thing in zip(objects, scene.objects, strict=True) for fault in _differences(found, thing, task)]
    if task == "relations" and not _related(objects[0], objects[1], scene.relation):
        faults.append("relation")
    return sorted(set(faults), key=faults.index)


def _differences(found: ObjectEstimate, thing: Thing, task: SuiteTask) -> list[str]:
    differs = {
        "shape": found.shape != thing.shape,
        "colour": task != "single" and found.colour != thing.colour,
        "size": task == "single" and found.size != thing.size,
        "place": task == "position" and found.place != thing.position,
    }
    return [name for name, is_fault in differs.items() if is_fault]


def _related(first: ObjectEstimate, second: ObjectEstimate, relation: str | None) -> bool:
    """True if `first` is in `relation` to `second`: clearly apart in that direction, and more than in the other."""
    right, down = second.x - first.x, second.y - first.y
    ways = {"to the left of": (right, down), "to the right of": (-right, down), "above": (down, right), "below": (-down, right)}
    assert relation is not None
    along, across = ways[relation]
    return along > max(_APART, abs(across))
