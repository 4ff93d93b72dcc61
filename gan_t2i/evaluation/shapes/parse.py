"""Parses a picture of shapes into its background and its objects, each with shape, colour, size and place, by plain image analysis.

Nothing here is learnt: shapes are recognised by comparison with the data set's own drawings. Legend: R side of the picture in pixels, n side
of a window, S number of shapes, B number of blurs; lengths of an `ObjectEstimate` are fractions of the side, as in the data set.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ImageFilter

from gan_t2i.data.builtin.shapes import Scene, Thing, draw_scene, vocabulary

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_FAR_FROM_BACKGROUND = 60.0  # RGB distance beyond which a border is not of a named colour
_FOREGROUND = 36.0  # RGB distance; the palest colour on any background is 86 away, noise of sigma 4 rarely 20
_SPECK = 0.005  # of the picture's area; the smallest object of the data covers 0.012
_BLURS = (0.0, 0.5, 0.8)  # sigma in pixels: each shape is compared sharp and slightly blurred, as a blurred small star resembles a square
_ALIKE = 0.9  # likeness below which a component is none of the shapes
_PURE = 0.75  # least share of an object's own colour in its measured one, which the background dilutes in thin shapes and blurred pictures
_TOUCHING = np.ones((3, 3))  # diagonals connect
_CLEAR = 0.1  # distance from each of the nine places beyond which a position is ambiguous (half way to the next is 0.125)


@dataclass(frozen=True)
class ObjectEstimate:
    """An object found in a picture. `shape` is None for a blob, `size` a word of the vocabulary, `place` None between two places."""

    shape: str | None
    colour: str
    size: str
    place: str | None
    x: float
    y: float
    r: float

    def __str__(self) -> str:
        words = f"{self.size or 'medium'} {self.colour} {self.shape or 'blob'}"
        return f"{words} {self.place or f'at ({self.x:.2f}, {self.y:.2f})'}"


@dataclass(frozen=True)
class SceneEstimate:
    """Background and objects found in a picture; `background` is None where its colour has no name."""

    background: str | None
    objects: tuple[ObjectEstimate, ...]

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.objects)) or 'nothing'}, on {self.background or 'no plain background'}"


def parse_image(picture: npt.NDArray[np.uint8]) -> SceneEstimate:
    """Background and objects of a picture uint8 [R, R, 3], R at least 16; the objects in reading order."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[0] != picture.shape[1] or picture.shape[2] != 3:
        raise ValueError(f"picture must be uint8 [R, R, 3], not {picture.dtype} {list(picture.shape)}")
    name, background = _background(picture)
    difference = picture - background  # [R, R, 3]
    parts = _components(_foreground(difference))
    everything: Mask = np.logical_or.reduce([np.zeros(picture.shape[:2], bool), *parts])
    objects = [_identify(difference, part, everything & ~part, background) for part in parts]
    return SceneEstimate(name, tuple(objects))


def _background(picture: npt.NDArray[np.uint8]) -> tuple[str | None, Floats]:
    """Name of the border's colour by majority of its pixels, and the measured colour [3]."""
    named = vocabulary().backgrounds
    border = np.concatenate([picture[0], picture[-1], picture[1:-1, 0], picture[1:-1, -1]]).astype(float)
    distances = np.linalg.norm(border[:, None] - np.array(list(named.values()), float), axis=2)  # [pixels, names]
    nearest = distances.argmin(1)
    votes = np.bincount(nearest, minlength=len(named))
    winner = int(votes.argmax())
    colour = np.median(border[nearest == winner], axis=0)
    name = list(named)[winner]
    plain = 2 * votes[winner] >= len(border) and np.linalg.norm(colour - named[name]) < _FAR_FROM_BACKGROUND
    return (name if plain else None), colour


def _foreground(difference: Floats) -> Mask:
    """Pixels [R, R] that an object covers by half or more: half as far from the background as the farthest pixel nearby.

    A fixed threshold would join neighbours by their soft edges, which at 32 px are little more than a pixel apart.
    """
    from scipy import ndimage  # half a second, which training need not wait for

    distance = np.linalg.norm(difference, axis=2)
    nearby = ndimage.maximum_filter(distance, 5, mode="constant")
    found: Mask = (distance > _FOREGROUND) & (distance > 0.5 * nearby)
    return found


def _components(mask: Mask) -> list[Mask]:
    """The connected parts of `mask` that are larger than specks, in reading order."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, _TOUCHING)
    parts = [labels == number for number in range(1, count + 1)]
    return [part for part in parts if part.sum() >= _SPECK * mask.size]


def _identify(difference: Floats, part: Mask, others: Mask, background: Floats) -> ObjectEstimate:
    """The object in the component `part` [R, R], given the picture's difference from its background [R, R, 3]."""
    from scipy import ndimage

    inside = difference[part]  # [pixels, 3]
    strength = np.linalg.norm(inside, axis=1)
    full = np.median(inside[strength >= np.quantile(strength, 0.7)], axis=0)  # the object's colour where nothing is mixed into it
    near = ndimage.binary_dilation(part, _TOUCHING)
    edge = ndimage.binary_dilation(near, _TOUCHING) & ~ndimage.binary_dilation(others, _TOUCHING)
    region = (near | edge) & ~others  # the object with its soft edge
    coverage = difference @ full / (full @ full) * region  # [R, R]; beyond 0 and 1 by noise, which clipping would make a bias
    shape, x, y, r = _best_shape(coverage, part)
    sizes = vocabulary().sizes
    size = min(sizes, key=lambda word: abs(math.log(r / sizes[word])))  # the nearest by ratio
    return ObjectEstimate(shape, _colour_name(full, background), size, _place(x, y), x, y, r)


def _best_shape(coverage: Floats, part: Mask) -> tuple[str | None, float, float, float]:
    """The shape whose drawing is most like `coverage` [R, R], None if none is alike; its centre and half extent in fractions of the side.

    The search starts at the component's box and climbs to the best fit, in steps of a fraction of a pixel.
    """
    side = len(coverage)
    ticks = max(1, min(4, 128 // side))  # steps per pixel: a small picture needs finer ones
    ys, xs = np.nonzero(part)
    left, right, top, bottom = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
    best = (round((left + right) / 2 * ticks), round((top + bottom) / 2 * ticks), round(max(right - left, bottom - top) / 2 * ticks))
    padded, energy = np.pad(coverage, side).astype(np.float32), float((coverage**2).sum())
    fits: dict[tuple[int, int, int], Floats] = {}  # (x, y, r) -> likeness of every drawing [B * S]
    for step in (2, 1):
        moved = True
        while moved:
            for where in _around(best, step, side * ticks):
                if where not in fits:
                    fits[where] = _likeness(padded, energy, ticks, *where)
            start, best = best, max(fits, key=lambda where: fits[where].max())
            moved = best != start
    number = int(fits[best].argmax())
    shape = vocabulary().shapes[number % len(vocabulary().shapes)] if fits[best][number] >= _ALIKE else None
    x, y, r = (value / ticks / side for value in best)
    return shape, x, y, r


def _around(where: tuple[int, int, int], step: int, most: int) -> Iterator[tuple[int, int, int]]:
    """The 27 centres and half extents (x, y, r) within one step whose shapes fit into the picture, all in ticks."""
    for dx, dy, dr in itertools.product((0, -step, step), repeat=3):
        x, y, r = where[0] + dx, where[1] + dy, where[2] + dr
        if 0 <= x <= most and 0 <= y <= most and 1 <= r <= most // 2:
            yield x, y, r


def _likeness(padded: npt.NDArray[np.float32], energy: float, ticks: int, x: int, y: int, r: int) -> Floats:
    """Cosine between every drawing [B * S] and the coverage, which has a margin as wide as itself and the sum of squares `energy`.

    Unlike an IoU, it is not lowered by a small soft shape that is nowhere fully covered.
    """
    templates, energies = _templates(ticks, x % ticks, y % ticks, r)
    n = templates.shape[-1]
    left, top = (len(padded) // 3 + centre // ticks - n // 2 for centre in (x, y))
    common = (templates * padded[top : top + n, left : left + n]).sum((1, 2))
    cosine: Floats = common / np.sqrt(energies * energy)  # what lies outside the window is in the energy
    return cosine


@functools.lru_cache(maxsize=4096)
def _templates(ticks: int, u: int, v: int, r: int) -> tuple[npt.NDArray[np.float32], Floats]:
    """Every shape as the data set draws it, at every blur: coverage in [0, 1] as [B * S, n, n], and its sum of squares [B * S].

    Centre and half extent are in ticks, (u, v) from the upper left corner of the window's middle pixel.
    """
    half = math.ceil(r / ticks) + 2  # room for the softest edge
    n = 2 * half + 1
    x, y = ((half + part / ticks) / n for part in (u, v))
    scenes = [Scene("single", "black", (Thing(shape, "white", "", None, x, y, r / ticks / n),)) for shape in vocabulary().shapes]
    sharp = [draw_scene(scene, n).getchannel(0) for scene in scenes]
    blurred = [np.asarray(picture.filter(ImageFilter.GaussianBlur(sigma))) for sigma in _BLURS for picture in sharp]
    black, white = vocabulary().backgrounds["black"][0], vocabulary().colours["white"][0]
    coverage = ((np.stack(blurred).astype(np.float32) - black) / (white - black)).astype(np.float32)
    return coverage, (coverage**2).sum((1, 2)).astype(float)


def _colour_name(measured: Floats, background: Floats) -> str:
    """The named colour nearest to a measured difference from the background [3], pure or diluted by the background."""
    colours = {name: np.array(rgb) - background for name, rgb in vocabulary().colours.items()}

    def distance(name: str) -> float:
        pure = colours[name]
        if not (length := float(pure @ pure)):
            return math.inf
        share = min(1.0, max(_PURE, float(measured @ pure) / length))
        return float(np.linalg.norm(measured - share * pure))

    return min(colours, key=distance)


def _place(x: float, y: float) -> str | None:
    """The one of the nine places that (x, y) is close to, None if it is close to none."""
    positions = vocabulary().positions
    away = {place: max(abs(x - u), abs(y - v)) for place, (u, v) in positions.items()}
    nearest = min(away, key=lambda place: away[place])
    return nearest if away[nearest] <= _CLEAR else None
