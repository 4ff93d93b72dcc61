"""Built-in data set of simple shapes: random scenes, with captions that are true of them by construction.

It serves learning and measuring: the metadata hold the scene of every picture, and a share of the combinations (say, a single "pink ring",
with or without a position) never occurs in the training split. Every picture follows from (seed, index) alone.
"""

import io
import json
import math
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from PIL import Image, ImageDraw
from tqdm import tqdm

from gan_t2i.core.errors import UsageError
from gan_t2i.core.files import atomic_folder, check_new
from gan_t2i.data.builtin.shapes_grammar import Scene, Split, Task, Thing, captions, composition, split_of, vocabulary

__all__ = ["Scene", "ShapeSet", "Thing", "captions", "composition", "draw_scene", "make_shapes", "sample_scene", "split_of", "vocabulary"]

# Part of the name of cached copies: raise it when the same (seed, size, count) gives other pictures or captions.
VERSION = 2
SMALLEST, LARGEST = 16, 1024

TASKS: dict[Task, float] = {"single": 0.28, "position": 0.22, "two": 0.15, "relation": 0.20, "count": 0.15}
_SIZE_JITTER = 0.08
_POSITION_JITTER = 0.04  # a stated position stays by far the nearest of the nine
_FREE_JITTER = 0.14  # of a single object without a stated position
_BORDER = 0.008
_GAP = 0.045  # between the boxes of two objects: more than a pixel at 32 px
_PAIR_RADIUS = 0.17
_COUNT_RADIUS = {1: 0.20, 2: 0.17, 3: 0.14, 4: 0.12}
_SAME_SHAPE_SHARE = 0.15  # of pairs of objects, which then differ in colour alone
_TURN = [2 * math.pi * step / 64 for step in range(64)]
_STAR = [(math.pi * point / 5, (1, 0.43)[point % 2]) for point in range(10)]  # angle, radius
# in any place and scale: `_outline` centres them
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -math.sqrt(3) / 2), (1, math.sqrt(3) / 2), (-1, math.sqrt(3) / 2)],
    "diamond": [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)],
    "star": [(radius * math.sin(angle), -radius * math.cos(angle)) for angle, radius in _STAR],
    "cross": [
        *((1, 0.32), (0.32, 0.32), (0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32)),
        *((-1, -0.32), (-0.32, -0.32), (-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32)),
    ],
    "heart": [(16 * math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))) for t in _TURN],
}
CAPTIONS = 3  # per picture
_CHUNK = 64


@dataclass(frozen=True)
class ShapeSet:
    """A set of pictures of shapes: how it samples one, and how many it has."""

    count: int
    """Pictures, where the user names no number."""
    item: Callable[[random.Random, Split], tuple[Scene, dict[str, Any]]]
    """Samples a scene on one side of the split, with the columns of its metadata line beside file name and split."""


def make_shapes(
    out: Path,
    *,
    kind: ShapeSet | None = None,
    count: int | None = None,
    size: int = 64,
    seed: int = 0,
    heldout: int | None = None,
    progress: bool = True,
) -> Path:
    """Draw `count` pictures of `size` x `size` pixels into the folder `out`, with ``metadata.jsonl``; returns `out`.

    `kind` is the set (default `SHAPES`), which has a `count` of its own. The last `heldout` pictures (by default one in 25) show only
    combinations that the others never show. Raises `UsageError` where a number is out of range or `out` is not empty.
    """
    kind = kind or SHAPES
    count = kind.count if count is None else count
    if heldout is None:
        heldout = min(count - 1, max(1, count // 25))
    if count < 1:
        raise UsageError(f"count = {count}: must be 1 or more")
    if not SMALLEST <= size <= LARGEST:
        raise UsageError(f"size = {size}: must be from {SMALLEST} to {LARGEST} pixels")
    if not 0 <= heldout <= count:
        raise UsageError(f"heldout = {heldout}: must be from 0 to the count, {count}")
    check_new(out)
    with atomic_folder(out) as folder:
        (folder / "images").mkdir()
        chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]

        def draw(chunk: range) -> list[str]:
            return [_write_item(folder, kind, index, seed, size, "train" if index < count - heldout else "heldout") for index in chunk]

        # threads, not processes: encoding and writing release the GIL, and threads do not depend on how the caller was started
        with (
            ThreadPoolExecutor(max_workers=os.cpu_count()) as pool,
            (folder / "metadata.jsonl").open("w", encoding="utf-8", newline="\n") as metadata,
            tqdm(total=count, desc=f"shapes {size} px", unit="img", disable=None if progress else True) as bar,
        ):
            for lines in pool.map(draw, chunks):
                metadata.writelines(lines)
                bar.update(len(lines))
    return out


def _write_item(folder: Path, kind: ShapeSet, index: int, seed: int, size: int, split: Split) -> str:
    """Draw picture `index` into `folder`; returns its metadata line."""
    # a string seeds through SHA-512: neighbouring indices share nothing, and every Python version gives the same numbers
    rng = random.Random(f"shapes {seed} {index}")
    scene, columns = kind.item(rng, split)
    buffer = io.BytesIO()
    draw_scene(scene, size).save(buffer, "PNG", compress_level=1)
    name = f"images/{index:06d}.png"
    (folder / name).write_bytes(buffer.getvalue())
    return json.dumps({"file_name": name, "split": split, **columns}) + "\n"


def _item(rng: random.Random, split: Split) -> tuple[Scene, dict[str, Any]]:
    scene = sample_scene(rng, split=split)
    return scene, {"text": sample_captions(scene, rng), "scene": scene.to_json()}


SHAPES = ShapeSet(count=15000, item=_item)


def sample_captions(scene: Scene, rng: random.Random) -> list[str]:
    """Return `CAPTIONS` captions of the scene, of which the plain one is the first."""
    plain, *others = captions(scene)
    return [plain, *rng.sample(others, CAPTIONS - 1)]


def sample_scene(rng: random.Random, *, split: Split | None = None, task: Task | None = None) -> Scene:
    """Return a random scene, of `task` if given, whose composition is on the side `split` if given."""
    if task is None:
        [task] = rng.choices(list(TASKS), weights=list(TASKS.values()))
    assert task in get_args(Task), task
    while True:
        scene = _sample(rng, task)
        if split is None or split_of(scene) == split:
            return scene


def _sample(rng: random.Random, task: Task) -> Scene:
    words = vocabulary()
    background = rng.choice(list(words.backgrounds))
    colours = [colour for colour in words.colours if colour not in words.never_on.get(background, ())]
    shape, colour = rng.choice(words.shapes), rng.choice(colours)
    if task in ("single", "position"):
        size = rng.choice(list(words.sizes))
        position = rng.choice(list(words.positions)) if task == "position" else None
        return Scene(task, background, (_alone(rng, shape, colour, size, position),))
    if task == "count":
        count = rng.choice(list(words.counts.values()))
        if count == 1:
            return Scene(task, background, (_alone(rng, shape, colour, "", None),))
        radii = [jittered(rng, _COUNT_RADIUS[count])] * count
        centres = _scatter(rng, radii)
        return Scene(task, background, tuple(thing_at(shape, colour, x, y, r) for (x, y), r in zip(centres, radii, strict=True)))
    other_shape = shape if rng.random() < _SAME_SHAPE_SHARE else rng.choice([other for other in words.shapes if other != shape])
    other_colour = rng.choice([other for other in colours if other != colour])
    radii = [jittered(rng, _PAIR_RADIUS) for _ in range(2)]
    relation = rng.choice(words.relations) if task == "relation" else None
    centres = _arrange(rng, radii, relation) if relation else _scatter(rng, radii)
    looks = [(shape, colour), (other_shape, other_colour)]
    things = [thing_at(*look, *centre, r) for look, centre, r in zip(looks, centres, radii, strict=True)]
    return Scene(task, background, tuple(things), relation)


def _alone(rng: random.Random, shape: str, colour: str, size: str, position: str | None) -> Thing:
    """Return a single object inside the picture: near the border a large one is at the small end of large and moves inwards in the jitter."""
    words = vocabulary()
    x, y = words.positions[position or "in the center"]
    jitter = _POSITION_JITTER if position else _FREE_JITTER
    room = min(x, y, 1 - x, 1 - y) + _POSITION_JITTER - _BORDER
    r = jittered(rng, words.sizes[size], room)
    return thing_at(shape, colour, _near(rng, x, jitter, r), _near(rng, y, jitter, r), r, size, position)


def thing_at(shape: str, colour: str, x: float, y: float, r: float, size: str = "", position: str | None = None) -> Thing:
    """Return a thing with its centre (x, y) and half extent r as fractions of the picture's side."""
    # rounded before it is drawn, so that the metadata give the same picture again
    return Thing(shape, colour, size, position, round(x, 4), round(y, 4), round(r, 4))


def jittered(rng: random.Random, radius: float, most: float = 1.0) -> float:
    """Return a random half extent near `radius`, at most `most`."""
    return rng.uniform(radius * (1 - _SIZE_JITTER), min(radius * (1 + _SIZE_JITTER), most))


def _near(rng: random.Random, centre: float, jitter: float, r: float) -> float:
    """Return a coordinate within `jitter` of `centre` at which half extent `r` is inside the picture."""
    low, high = max(centre - jitter, r + _BORDER), min(centre + jitter, 1 - r - _BORDER)
    return rng.uniform(low, high) if low < high else (low + high) / 2


def _scatter(rng: random.Random, radii: list[float]) -> list[tuple[float, float]]:
    """Return random centres at which the boxes of all objects are apart and inside the picture."""
    centres: list[tuple[float, float]] = []
    tries = 0
    while len(centres) < len(radii):
        r = radii[len(centres)]
        x, y = (rng.uniform(r + _GAP, 1 - r - _GAP) for _ in range(2))
        if all(max(abs(x - u), abs(y - v)) >= r + q + _GAP for (u, v), q in zip(centres, radii, strict=False)):
            centres.append((x, y))
        tries += 1
        if tries % 40 == 0:  # the first ones may leave no room for the last
            centres.clear()
    return centres


def _arrange(rng: random.Random, radii: list[float], relation: str) -> list[tuple[float, float]]:
    """Return the centres of two objects, the first in `relation` to the second; they are at most 0.2 as far apart across as along."""
    least = sum(radii) + _GAP
    along = rng.uniform(least, 1 - sum(radii) - 2 * _GAP)
    start = rng.uniform(radii[0] + _GAP, 1 - radii[1] - _GAP - along)
    across = rng.uniform(0.38, 0.62)
    shift = rng.uniform(-0.1, 0.1) * along
    near, far = (start, across - shift), (start + along, across + shift)
    if relation in ("to the right of", "below"):
        # mirrored, so that each radius stays with its object
        near, far = (1 - near[0], near[1]), (1 - far[0], far[1])
    if relation in ("above", "below"):
        return [near[::-1], far[::-1]]
    return [near, far]


def draw_scene(scene: Scene, size: int) -> Image.Image:
    """Draw the scene: RGB, `size` x `size` pixels, edges anti-aliased."""
    words = vocabulary()
    picture = Image.new("RGB", (size, size), words.backgrounds[scene.background])
    for thing in scene.objects:
        mask, corner = _mask(thing, size)
        picture.paste(words.colours[thing.colour], corner, mask)
    return picture


def _mask(thing: Thing, size: int) -> tuple[Image.Image, tuple[int, int]]:
    """Return the coverage of each pixel by the shape (0 to 255) in the box around it, and the box's upper left corner."""
    fine = 8 if size <= 128 else 4  # samples per pixel along each axis; a small picture needs more
    left, top = (math.floor((centre - thing.r) * size) for centre in (thing.x, thing.y))
    right, bottom = (math.ceil((centre + thing.r) * size) + 1 for centre in (thing.x, thing.y))
    mask = Image.new("L", ((right - left) * fine, (bottom - top) * fine))
    draw = ImageDraw.Draw(mask)
    # Pillow's coordinates are the centres of pixels
    x, y = (thing.x * size - left) * fine - 0.5, (thing.y * size - top) * fine - 0.5
    r = thing.r * size * fine
    if thing.shape in ("circle", "ring"):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if thing.shape == "ring":
            hole = 0.56 * r
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        draw.polygon([(x + r * u, y + r * v) for u, v in _outline(thing.shape)], fill=255)
    return mask.reduce(fine), (left, top)


@cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Return the corners of a shape whose box is centred on 0 and whose longer half extent is 1."""
    points = _CORNERS[shape]
    xs, ys = zip(*points, strict=True)
    middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    half = max(max(xs) - min(xs), max(ys) - min(ys)) / 2
    return tuple(((x - middle[0]) / half, (y - middle[1]) / half) for x, y in points)
