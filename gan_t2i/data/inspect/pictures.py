"""What the pictures of a data set are like: sizes, duplicates, and those on which nothing can be seen.

Each picture is decoded once, and of each a few numbers are kept (about 90 bytes), so that memory does not grow with the pictures' size.
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

from gan_t2i.data.decode import BadImageError, open_image, to_rgb
from gan_t2i.data.duplicates import COLOUR_SIDE, coarse_colours, difference_hash, groups_of, near_groups
from gan_t2i.data.inspect.captions import FIRST
from gan_t2i.data.packing import cores, location_of, map_in_threads
from gan_t2i.data.records import BadItems, LazyFile, Record
from gan_t2i.data.settings import DataSettings

TINY = 32  # pixels a side: the smallest resolution of the shipped configs
EMPTY_SPREAD = 8  # of 255, between the darkest and the brightest field, in each channel
_THUMBNAIL = 32  # pixels; what is smaller than a field of it does not count as content
_FAR_BELOW = 64  # pixels; JPEG decodes at the smallest of its own scales above it


class Look(NamedTuple):
    """What is kept of a picture."""

    size: tuple[int, int]  # width, height as stored
    digest: bytes  # of the encoded picture
    hash: int
    colours: npt.NDArray[np.uint8]
    spread: int  # 0 to 255


@dataclass(frozen=True)
class Named:
    """How many pictures have something about them, and where the first ones are."""

    count: int
    first: list[str]


@dataclass(frozen=True)
class Groups:
    """Pictures that are alike: how many groups, how many pictures could go, and the first members of the largest groups."""

    groups: int
    surplus: int
    first: list[list[str]]


@dataclass(frozen=True)
class PictureStats:
    """Of the pictures that were looked at and can be decoded."""

    looked_at: int
    width: dict[str, int]  # least, median, most, in pixels
    height: dict[str, int]
    smallest_side: dict[str, int]  # least, p5, median, most
    exact_duplicates: Groups  # the same file
    near_duplicates: Groups  # not the same file, but nearly the same picture
    near_empty: Named
    tiny: Named  # a side below `TINY` pixels


def describe_pictures(
    records: Sequence[Record], settings: DataSettings, bad: BadItems, *, progress: bool = True, workers: int | None = None
) -> tuple[PictureStats | None, list[Record]]:
    """Look at every picture of `records`, in threads; returns the statistics and the records whose pictures can be decoded.

    The others go to `bad`. Without a usable picture the statistics are None.
    """
    looks: list[Look] = []
    usable: list[Record] = []
    results = map_in_threads(records, lambda record: look_at(record.image, settings.background), workers or cores())
    bar = tqdm(records, "looking", unit="img", disable=not progress)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in packing: Pillow's warnings name no picture
        for record, result in zip(bar, results, strict=True):
            if isinstance(result, BadImageError):
                bad.add(result.kind, location_of(record), str(result))
            else:
                looks.append(result)
                usable.append(record)
    return (_summary(looks, usable) if looks else None), usable


def look_at(source: Path | LazyFile, background: str) -> Look:
    """Decode one picture as small as possible; raises `BadImageError`."""
    if isinstance(source, LazyFile):
        source = replace(source, read=functools.cache(source.read))  # once for the digest and the picture
    with open_image(source) as image:
        size = image.size
        image.draft(None, (_FAR_BELOW, _FAR_BELOW))  # does something for JPEG alone
        small = to_rgb(image, background).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX, reducing_gap=3)
        pixels = np.asarray(small).reshape(-1, 3)
        spread = int((pixels.max(axis=0) - pixels.min(axis=0)).max())
        return Look(size, _digest(source), difference_hash(small), coarse_colours(small), spread)


def _digest(source: Path | LazyFile) -> bytes:
    if isinstance(source, LazyFile):
        return hashlib.blake2b(source.read(), digest_size=16).digest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def _summary(looks: Sequence[Look], records: Sequence[Record]) -> PictureStats:
    sizes = np.array([look.size for look in looks])  # [N, 2]
    sides = sizes.min(axis=1)
    exact = groups_of([look.digest for look in looks])
    # Of the same files one is compared; empty pictures are all alike, and counted as such.
    again = {index for group in exact for index in group[1:]}
    compared = [index for index, look in enumerate(looks) if index not in again and look.spread > EMPTY_SPREAD]
    hashes = np.array([looks[index].hash for index in compared], dtype=np.uint64)
    colours = np.array([looks[index].colours for index in compared], dtype=np.uint8).reshape(-1, 3 * COLOUR_SIDE**2)
    near = [[compared[index] for index in group] for group in near_groups(hashes, colours)]
    return PictureStats(
        looked_at=len(looks),
        width=_spread(sizes[:, 0]),
        height=_spread(sizes[:, 1]),
        smallest_side={**_spread(sides), "p5": int(np.percentile(sides, 5, method="lower"))},
        exact_duplicates=_groups(exact, records),
        near_duplicates=_groups(near, records),
        near_empty=_named([index for index, look in enumerate(looks) if look.spread <= EMPTY_SPREAD], records),
        tiny=_named(np.flatnonzero(sides < TINY).tolist(), records),
    )


def _spread(values: npt.NDArray[np.int64]) -> dict[str, int]:
    return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}


def _groups(groups: list[list[int]], records: Sequence[Record]) -> Groups:
    shown = [[location_of(records[index]) for index in group[:FIRST]] for group in groups[:FIRST]]
    return Groups(len(groups), sum(len(group) - 1 for group in groups), shown)


def _named(indices: list[int], records: Sequence[Record]) -> Named:
    return Named(len(indices), [location_of(records[index]) for index in indices[:FIRST]])
