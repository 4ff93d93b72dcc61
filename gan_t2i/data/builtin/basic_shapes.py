"""Built-in data set of basic shapes, for a first run of a few minutes: six shapes in seven colours on white, alone or in pairs.

It is easier than `shapes` on purpose. A caption settles its picture up to a little jitter: a single object stands in the middle, "a red heart
and a blue star" is drawn from left to right, and no caption names a background. The held-out combinations are those of `shapes`.
"""

import random
from typing import Any

from gan_t2i.data.builtin.shapes import ShapeSet, jittered, thing_at
from gan_t2i.data.builtin.shapes_grammar import INVERSE, Scene, Split, Task, noun, split_of, vocabulary

# Part of the name of cached copies: raise it when the same (seed, size, count) gives other pictures or captions.
VERSION = 1

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "pink")
TASKS: dict[Task, float] = {"single": 0.3, "two": 0.25, "relation": 0.45}
_JITTER = 0.03  # of a place, as a fraction of the picture's side
_NEAR, _MIDDLE, _FAR = 0.25, 0.5, 0.75  # places along a side
_SINGLE_RADIUS, _PAIR_RADIUS = 0.22, 0.18


def sample_scene(rng: random.Random, *, split: Split, task: Task | None = None) -> Scene:
    """Return a random scene on the side `split`, of `task` if given."""
    if task is None:
        [task] = rng.choices(list(TASKS), weights=list(TASKS.values()))
    while split_of(scene := _sample(rng, task)) != split:
        pass
    return scene


def captions(scene: Scene) -> list[str]:
    """Return the wordings of the scene, the plain one first."""
    nouns = [noun(thing) for thing in scene.objects]
    if scene.relation is not None:
        return [f"{nouns[0]} {scene.relation} {nouns[1]}", f"{nouns[1]} {INVERSE[scene.relation]} {nouns[0]}"]
    return [" and ".join(nouns)]


def _sample(rng: random.Random, task: Task) -> Scene:
    shape, colour = rng.choice(SHAPES), rng.choice(COLOURS)
    near, middle, far = ([place + rng.uniform(-_JITTER, _JITTER) for _ in range(2)] for place in (_NEAR, _MIDDLE, _FAR))
    if task == "single":
        return Scene(task, "white", (thing_at(shape, colour, middle[0], middle[1], jittered(rng, _SINGLE_RADIUS)),))
    other_shape, other_colour = rng.choice(SHAPES), rng.choice([other for other in COLOURS if other != colour])
    relation = rng.choice(vocabulary().relations) if task == "relation" else None
    centres = [(near[0], middle[0]), (far[0], middle[1])]
    if relation in ("above", "below"):
        centres = [(y, x) for x, y in centres]
    if relation in ("to the right of", "below"):
        centres.reverse()
    looks = [(shape, colour), (other_shape, other_colour)]
    things = [thing_at(*look, x, y, jittered(rng, _PAIR_RADIUS)) for look, (x, y) in zip(looks, centres, strict=True)]
    return Scene(task, "white", tuple(things), relation)


def _item(rng: random.Random, split: Split) -> tuple[Scene, dict[str, Any]]:
    # without the scene: negatives that change one word of it would be worded as in `shapes`
    scene = sample_scene(rng, split=split)
    return scene, {"text": captions(scene)}


BASIC_SHAPES = ShapeSet(count=6000, item=_item)
