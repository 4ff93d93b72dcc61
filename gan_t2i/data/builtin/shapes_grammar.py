"""Scenes of shapes and the words for them: vocabulary, scenes, captions, and the held-out combinations.

A `Scene` is the ground truth of a picture. Captions are made from it and never parsed back; a grader compares pictures with scenes. Lengths are
fractions of the picture's side, and y grows downwards.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import itertools
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import TypeAdapter

from gan_t2i.core.words import split_words

Task = Literal["single", "position", "two", "relation", "count"]
Split = Literal["train", "heldout"]
Colour = tuple[int, int, int]

INVERSE = {"to the left of": "to the right of", "to the right of": "to the left of", "above": "below", "below": "above"}

# The held-out combinations follow from this salt alone, so that every seed, size and count holds out the same ones. It was chosen to
# spread the eight held-out (shape, colour) pairs over eight colours and six shapes, and to hold out seven each of two, three and four.
_HELDOUT_SALT = "shapes-2169"
_HELDOUT_SHARE = 0.07

_SIZE_WORDS = {"": [""], "small": ["small", "little"], "large": ["large", "big"]}
_RELATION_WORDS = {
    "to the left of": ["to the left of", "left of"],
    "to the right of": ["to the right of", "right of"],
    "above": ["above", "over"],
    "below": ["below", "under"],
}
_POSITION_WORDS = {
    "on the left": ["on the left side"],
    "on the right": ["on the right side"],
    "in the center": ["in the middle"],
    "in the top left corner": ["in the upper left corner"],
    "in the top right corner": ["in the upper right corner"],
    "in the bottom left corner": ["in the lower left corner"],
    "in the bottom right corner": ["in the lower right corner"],
}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Words of the data set and their meanings: colours as RGB, sizes as half extents, positions as (x, y)."""

    shapes: tuple[str, ...]
    plurals: dict[str, str]
    colours: dict[str, Colour]
    backgrounds: dict[str, Colour]
    never_on: dict[str, tuple[str, ...]]
    sizes: dict[str, float]
    positions: dict[str, tuple[float, float]]
    relations: tuple[str, ...]
    counts: dict[str, int]


@functools.cache
def vocabulary() -> Vocabulary:
    """Return the vocabulary of ``shapes.json``, beside this module."""
    text = importlib.resources.files("gan_t2i.data.builtin").joinpath("shapes.json").read_text(encoding="utf-8")
    return TypeAdapter(Vocabulary).validate_json(text)


@dataclasses.dataclass(frozen=True)
class Thing:
    """A shape of a scene, with centre (x, y) and half extent r. `size` and `position` are the words of the caption, "" and None where it has
    none."""

    shape: str
    colour: str
    size: str
    position: str | None
    x: float
    y: float
    r: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """Content of a picture: background, objects, and in the task "relation" the relation of the first object to the second."""

    task: Task
    background: str
    objects: tuple[Thing, ...]
    relation: str | None = None

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.objects)

    def to_json(self) -> dict[str, Any]:
        """Return the scene as plain values for a metadata line."""
        values = dataclasses.asdict(self)
        return {**values, "objects": list(values["objects"]), "count": self.count}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Scene":
        """Return the scene from the values of `to_json`."""
        objects = tuple(Thing(**thing) for thing in values["objects"])
        return cls(task=values["task"], background=values["background"], objects=objects, relation=values["relation"])


def composition(scene: Scene) -> tuple[str, ...]:
    """Return the combination in a scene in canonical order: "B right of A" is "A left of B", and "A and B" is "B and A".

    A single object without a position, and a count of one, are both ("single", "colour shape").
    """
    pairs = [f"{thing.colour} {thing.shape}" for thing in scene.objects]
    if scene.task == "position":
        return ("position", pairs[0], str(scene.objects[0].position))
    if scene.task == "two":
        return ("two", *sorted(pairs))
    if scene.task == "relation":
        assert scene.relation is not None
        if scene.relation in ("to the right of", "below"):
            return ("relation", pairs[1], INVERSE[scene.relation], pairs[0])
        return ("relation", pairs[0], scene.relation, pairs[1])
    if scene.count > 1:
        return ("count", pairs[0], str(scene.count))
    return ("single", pairs[0])


def split_of(scene: Scene) -> Split:
    """Return the side of the split that the scene's composition is on, whatever the seed. A (shape, colour) held out as a single object is
    held out at every position too."""
    combined = composition(scene)
    heldout = _is_held_out(combined) or (combined[0] == "position" and _is_held_out(("single", combined[1])))
    return "heldout" if heldout else "train"


@functools.lru_cache(maxsize=100_000)
def _is_held_out(combined: tuple[str, ...]) -> bool:
    digest = hashlib.sha256("|".join((_HELDOUT_SALT, *combined)).encode()).digest()
    return int.from_bytes(digest[:8], "big") < _HELDOUT_SHARE * 2**64


def captions(scene: Scene) -> list[str]:
    """Return every wording of the scene in the grammar, the plain one ("... on a white background") first, each once."""
    result = []
    for subject in _subjects(scene):
        full = f"on a {scene.background} background"
        result += [f"{subject} {full}", f"{subject} on {scene.background}", f"{full}, {subject}", f"{subject}, {scene.background} background"]
    if scene.task == "position":
        thing = scene.objects[0]
        for size in _SIZE_WORDS[thing.size]:
            for position in _positions(thing):
                result.append(f"{noun(thing, size)} {position} of a {scene.background} background")
                result.append(f"{position}, {noun(thing, size)} on {scene.background}")
    return list(dict.fromkeys(result))


@functools.cache
def known_words() -> frozenset[str]:
    """Return every word that occurs in captions, in lower case."""
    words = vocabulary()
    plurals = [words.plurals.get(shape, shape + "s") for shape in words.shapes]
    meanings = [*words.shapes, *plurals, *words.colours, *words.backgrounds, *words.positions, *words.counts, *map(str, words.counts.values())]
    wordings = itertools.chain(*_SIZE_WORDS.values(), *_RELATION_WORDS.values(), *_POSITION_WORDS.values())
    return frozenset(split_words(" ".join(["a an single and on of background", *meanings, *wordings])))


def _subjects(scene: Scene) -> list[str]:
    """Return the wordings of everything except the background, the plain one first."""
    first = scene.objects[0]
    if scene.task == "single":
        return [noun(first, size) for size in _SIZE_WORDS[first.size]]
    if scene.task == "position":
        return [f"{noun(first, size)} {position}" for size in _SIZE_WORDS[first.size] for position in _positions(first)]
    if scene.task == "count":
        return _counted(first, scene.count)
    a, b = (noun(thing) for thing in scene.objects)
    if scene.task == "two":
        return [f"{a} and {b}", f"{b} and {a}"]
    assert scene.relation is not None
    forwards = [f"{a} {words} {b}" for words in _RELATION_WORDS[scene.relation]]
    return forwards + [f"{b} {words} {a}" for words in _RELATION_WORDS[INVERSE[scene.relation]]]


def noun(thing: Thing, size: str = "") -> str:
    """Return a thing with its article, as "an orange star"."""
    words = " ".join(word for word in (size, thing.colour, thing.shape) if word)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _positions(thing: Thing) -> list[str]:
    assert thing.position is not None
    return [thing.position, *_POSITION_WORDS.get(thing.position, [])]


def _counted(thing: Thing, count: int) -> list[str]:
    word = next(word for word, number in vocabulary().counts.items() if number == count)
    if count == 1:
        numbers, shape = [word, "1", "a single"], thing.shape
    else:
        numbers, shape = [word, str(count)], vocabulary().plurals.get(thing.shape, thing.shape + "s")
    return [f"{number} {thing.colour} {shape}" for number in numbers]
