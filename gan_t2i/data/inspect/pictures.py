"""Statistics of a data set's pictures: sizes, duplicates, near-empty and tiny ones.

Each picture is decoded once, and only a few numbers of it are kept (about 90 bytes), so memory does not grow with the pictures' size.
"""

import functools
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from gan_t2i.core.log import bar_options
from gan_t2i.core.threads import cores
from gan_t2i.data.decode import BadImageError, is_transparent, open_image, to_rgb
from gan_t2i.data.duplicates import COLOUR_SIDE, coarse_colours, difference_hash, groups_of, near_groups
from gan_t2i.data.inspect.captions import EXAMPLES
from gan_t2i.data.packing import location_of, map_in_threads
from gan_t2i.data.records import BadItems, LazyFile, Record
from gan_t2i.data.settings import DataSettings

TINY = 32  # pixels per side: the smallest resolution of the shipped configs
EMPTY_CONTRAST = 8  # of 255, between the darkest and the brightest field, in each channel
_THUMBNAIL = 32  # pixels; anything smaller than a field of it does not count as content
_DRAFT = 64  # pixels; JPEG decodes at the smallest of its own scales above this


class PictureFacts(NamedTuple):
    """Facts of a picture that the statistics need."""

    size: tuple[int, int]  # width, height as stored
    digest: bytes  # of the encoded picture
    hash: int
    colours: npt.NDArray[np.uint8]
    contrast: int  # 0 to 255
    is_transparent: bool


@dataclass(frozen=True)
class Found:
    """Number of pictures with some property, and the locations of the first ones."""

    count: int
    first: list[str]


@dataclass(frozen=True)
class Duplicates:
    """Groups of alike pictures: their number, the number of surplus pictures, and the first members of the largest groups."""

    groups: int
    surplus: int
    first: list[list[str]]


@dataclass(frozen=True)
class PictureStats:
    """Statistics of the pictures that can be decoded."""

    looked_at: int
    width: dict[str, int]  # least, median, most, in pixels
    height: dict[str, int]
    smallest_side: dict[str, int]  # least, p5, median, most
    exact_duplicates: Duplicates  # the same file
    near_duplicates: Duplicates  # other files, but nearly the same picture
    near_empty: Found
    tiny: Found  # a side below `TINY` pixels
    transparent: int  # pictures with a pixel that is not opaque


def describe_pictures(
    records: Sequence[Record], settings: DataSettings, bad: BadItems, *, progress: bool = True, workers: int | None = None
) -> tuple[PictureStats | None, list[Record]]:
    """Decode every picture of `records`, in threads; returns the statistics and the records whose pictures can be decoded.

    The others go to `bad`. The statistics are None where no picture is usable.
    """
    facts: list[PictureFacts] = []
    usable: list[Record] = []
    results = map_in_threads(records, lambda record: facts_of(record.image, settings.background), workers or cores())
    bar = tqdm(records, "inspecting", unit="img", disable=not progress, **bar_options())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in packing: Pillow's warnings do not name the picture
        for record, result in zip(bar, results, strict=True):
            if isinstance(result, BadImageError):
                bad.add(result.kind, location_of(record), str(result))
            else:
                facts.append(result)
                usable.append(record)
    return (_summary(facts, usable) if facts else None), usable


def facts_of(source: Path | LazyFile, background: str) -> PictureFacts:
    """Decode a picture as small as possible and return its facts; raises `BadImageError`."""
    if isinstance(source, LazyFile):
        source = replace(source, read=functools.cache(source.read))  # once for the digest and the picture
    with open_image(source) as image:
        size = image.size
        image.draft(None, (_DRAFT, _DRAFT))  # affects JPEG alone
        small = to_rgb(image, background).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX, reducing_gap=3)
        pixels = np.asarray(small).reshape(-1, 3)
        contrast = int((pixels.max(axis=0) - pixels.min(axis=0)).max())
        content = source.read() if isinstance(source, LazyFile) else source.read_bytes()
        digest = hashlib.blake2b(content, digest_size=16).digest()
        return PictureFacts(size, digest, difference_hash(small), coarse_colours(small), contrast, is_transparent(image))


def _summary(facts: Sequence[PictureFacts], records: Sequence[Record]) -> PictureStats:
    sizes = np.array([one.size for one in facts])  # [N, 2]
    sides = sizes.min(axis=1)
    exact = groups_of([one.digest for one in facts])
    # of identical files one is compared; empty pictures are all alike, and counted separately
    repeated = {index for group in exact for index in group[1:]}
    compared = [index for index, one in enumerate(facts) if index not in repeated and one.contrast > EMPTY_CONTRAST]
    hashes = np.array([facts[index].hash for index in compared], dtype=np.uint64)
    colours = np.array([facts[index].colours for index in compared], dtype=np.uint8).reshape(-1, 3 * COLOUR_SIDE**2)
    near = [[compared[index] for index in group] for group in near_groups(hashes, colours)]
    return PictureStats(
        looked_at=len(facts),
        width=_range(sizes[:, 0]),
        height=_range(sizes[:, 1]),
        smallest_side={**_range(sides), "p5": int(np.percentile(sides, 5, method="lower"))},
        exact_duplicates=_duplicates(exact, records),
        near_duplicates=_duplicates(near, records),
        near_empty=_found([index for index, one in enumerate(facts) if one.contrast <= EMPTY_CONTRAST], records),
        tiny=_found(np.flatnonzero(sides < TINY).tolist(), records),
        transparent=sum(one.is_transparent for one in facts),
    )


def _range(values: npt.NDArray[np.int64]) -> dict[str, int]:
    return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}


def _duplicates(groups: list[list[int]], records: Sequence[Record]) -> Duplicates:
    shown = [[location_of(records[index]) for index in group[:EXAMPLES]] for group in groups[:EXAMPLES]]
    return Duplicates(len(groups), sum(len(group) - 1 for group in groups), shown)


def _found(indices: list[int], records: Sequence[Record]) -> Found:
    return Found(len(indices), [location_of(records[index]) for index in indices[:EXAMPLES]])
