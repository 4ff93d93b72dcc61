"""Recoloured copies of training pictures: a "rocket" also as a "blue rocket", so that the words for colours mean colours on every thing.

With one picture a caption, a model learns the colour of each thing by heart and has no need of the word. A copy turns the hue that most of the
picture has, and leaves the other hues, grey, black and white as they are; its captions name the new colour. Pictures without such a hue, and
captions with a colour in them, get no copies. Copies are trained on, and never evaluated. Legend: C channels, R resolution in pixels.
"""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from gan_t2i.core.words import split_words
from gan_t2i.data.decode import Pixels, to_image
from gan_t2i.data.settings import DataSettings
from gan_t2i.data.splits import Split

HUES = {"red": 0, "orange": 28, "yellow": 50, "green": 125, "blue": 215, "purple": 275, "pink": 330}  # degrees
LIGHTENED = {"pink": (0.6, 0.5), "yellow": (1.0, 0.4)}  # factor of the saturation, and how far the brightness moves to its largest value
COLOUR_WORDS = {*HUES, "black", "white", "brown", "grey", "gray", "golden", "gold", "silver", "violet", "colourful", "colorful", "rainbow"}
COLOUR_WORDS |= {"beige", "cyan", "magenta", "turquoise"}
CLEAR = (70, 50)  # least saturation and brightness of 255 of a pixel whose hue counts
DRAWN = (20, 245)  # a pixel of lower saturation and higher brightness is white ground
LEAST_SHARE = 0.3  # of what is drawn must have the main hue
BAND = 45  # degrees on either side of the main hue that are turned
FAR = 30  # degrees between the main hue and that of a copy, at least
SPREAD = 0.5  # of the differences of hue within the band stay
MOST_WORDS = 6  # of a caption, which is a name then: in a sentence the colour would not belong to the first thing


class Copy(NamedTuple):
    """A copy of the training picture `original` in another colour."""

    original: int
    captions: tuple[str, ...]
    colour: str


def append_copies(path: Path, split: Split, resolution: int, settings: DataSettings, digest: "hashlib._Hash") -> list[Copy]:
    """Append the copies that `settings` ask for to the pictures at `path`, uint8 [N, C, R, R], and show them to `digest`; returns them."""
    if not settings.recolour:
        return []
    pictures = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, settings.channels, resolution, resolution)
    taken = {caption for captions in split.captions for caption in captions}
    copies = []
    with open(path, "ab") as file:
        for original, (pixels, captions, heldout) in enumerate(zip(pictures, split.captions, split.heldout, strict=True)):
            names = () if heldout else tuple(filter(is_colourless_name, captions))
            named = {colour: tuple(with_colour(name, colour) for name in names) for colour in HUES if names}
            # the caption of a real picture, which may be held out, is not given to a copy
            colours = [colour for colour, captions in named.items() if taken.isdisjoint(captions)]
            random.Random(captions[0]).shuffle(colours)
            for colour, painted in recolour(pixels, colours, settings.recolour):
                file.write(painted.tobytes())
                digest.update(painted.tobytes())
                copies.append(Copy(original, named[colour], colour))
    return copies


def is_colourless_name(caption: str) -> bool:
    """Return True for a caption that is short enough for a name, and has no colour in it."""
    words = split_words(caption)
    return len(words) <= MOST_WORDS and COLOUR_WORDS.isdisjoint(words)


def with_colour(name: str, colour: str) -> str:
    """Return the name of a thing with a colour: "rocket" becomes "blue rocket", and "an owl" "a blue owl"."""
    article, _, noun = name.partition(" ")
    if article.lower() not in ("a", "an", "the"):
        return f"{colour} {name}"
    if article.lower() != "the":
        article = article[0] + "n" * (colour[0] in "aeiou")
    return f"{article} {colour} {noun}"


def recolour(pixels: Pixels, colours: Sequence[str], count: int) -> list[tuple[str, Pixels]]:
    """Return a picture uint8 [C, R, R], premultiplied where it has alpha, in the first `count` of `colours` that are far from its main hue.

    The list is empty for a picture without a main hue.
    """
    image = to_image(pixels)
    hsv = np.asarray(image.convert("RGB").convert("HSV")).astype(np.float64)  # [R, R, 3] in [0, 255]
    hue, saturation, value = hsv[..., 0] * 360 / 256, hsv[..., 1], hsv[..., 2]
    clear = (saturation > CLEAR[0]) & (value > CLEAR[1])
    drawn = (saturation > DRAWN[0]) | (value < DRAWN[1])
    if image.mode == "RGBA":
        drawn = np.asarray(image)[..., 3] > 0
        clear &= drawn
    if not clear.any():
        return []
    main = (np.histogram(hue[clear], bins=36, range=(0, 360))[0].argmax() + 0.5) * 10
    turned = clear & (np.abs(_difference(hue, main)) < BAND)
    if turned.sum() < LEAST_SHARE * drawn.sum():
        return []
    far = [colour for colour in colours if abs(_difference(np.array(HUES[colour]), main)) > FAR]
    found = []
    for colour in far[:count]:
        keep, lift = LIGHTENED.get(colour, (1.0, 0.0))
        painted = (HUES[colour] + SPREAD * _difference(hue, main)) % 360 * 256 / 360, saturation * keep, value + lift * (255 - value)
        found.append((colour, _paint(pixels, turned, np.stack(painted, axis=2))))
    return found


def _difference(hue: npt.NDArray[Any], other: float) -> npt.NDArray[Any]:
    """Return how far hues lie from another one, in degrees from -180 to 180."""
    return (hue - other + 180) % 360 - 180


def _paint(pixels: Pixels, turned: npt.NDArray[np.bool_], hsv: npt.NDArray[np.float64]) -> Pixels:
    """Return a copy of `pixels` whose pixels `turned` [R, R] have the colours `hsv` [R, R, 3]."""
    rgb = Image.fromarray(hsv.round().clip(0, 255).astype(np.uint8), "HSV").convert("RGB")
    colours = np.asarray(rgb).transpose(2, 0, 1)
    if len(pixels) == 4:
        colours = (colours * (pixels[3] / 255)).round().astype(np.uint8)  # premultiplied
    painted = pixels.copy()
    painted[:3] = np.where(turned, colours, pixels[:3])
    return painted
