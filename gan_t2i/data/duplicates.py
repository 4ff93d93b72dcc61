"""Near-duplicate pictures: a difference hash of 64 bits, and groups of near hashes without comparing all pairs.

Legend: N pictures.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_SIZE = (9, 8)  # columns, rows: 8 x 8 differences of neighbours
# recompressing or resizing a photograph changes 0 to 4 of the 64 bits
MAX_DISTANCE = 4
# The hash ignores colour, so a red and a blue circle have the same one: near pictures must agree in these coarse colours too.
COLOUR_SIDE = 4
MAX_COLOUR_DIFFERENCE = 16  # of 255
_BANDS = 8
# A picture is compared with this many of those that share its key, the nearest in tone, so that a set on white does not cost N^2 either.
_WINDOW = 16

Hashes = npt.NDArray[np.uint64]  # [N]
Colours = npt.NDArray[np.uint8]  # [N, 3 * COLOUR_SIDE^2]


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits, one for each pair of neighbours in a row of the picture at 9 x 8 grey: 1 if the left one is brighter."""
    grey = np.asarray(image.convert("L").resize(HASH_SIZE, Image.Resampling.BOX, reducing_gap=3), dtype=np.int16)  # [8, 9]
    return int.from_bytes(np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes())


def coarse_colours(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the means of an RGB picture's 4 x 4 fields, [48]."""
    return np.asarray(image.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX, reducing_gap=3)).reshape(-1)


def near_groups(hashes: Hashes, colours: Colours) -> list[list[int]]:
    """Return groups of two or more pictures that chains of near pairs connect: indices, the largest group first.

    Two hashes that differ in at most `MAX_DISTANCE` bits agree in at least four of eight bands of bits. So pictures are sorted by each choice
    of four bands, and only neighbours in that order are compared: O(N log N) in time, O(N) in memory. Where more than `_WINDOW` pictures
    have the same four bands, only those nearest in tone are found.
    """
    tone = colours.sum(axis=1, dtype=np.int64)
    labels = np.arange(len(hashes))  # [N], equal where a chain connects pictures
    for bands in itertools.combinations(range(_BANDS), _BANDS - MAX_DISTANCE):
        keys = hashes & _mask(bands)
        order = np.lexsort((tone, keys))
        pairs = [np.empty((2, 0), dtype=np.int64)]
        for shift in range(1, min(_WINDOW, len(order) - 1) + 1):
            first, second = order[:-shift], order[shift:]
            same = keys[first] == keys[second]
            if not same.any():
                break
            first, second = first[same], second[same]
            near = _distance(hashes[first], hashes[second]) <= MAX_DISTANCE
            first, second = first[near], second[near]
            close = np.abs(colours[first].astype(np.int16) - colours[second]).max(axis=1, initial=0) <= MAX_COLOUR_DIFFERENCE
            pairs.append(np.stack((first[close], second[close])))
        edges = labels[np.concatenate(pairs, axis=1)]  # [2, number of pairs]
        graph = coo_array((np.ones(edges.shape[1]), tuple(edges)), shape=(len(labels), len(labels)))
        labels = connected_components(graph, directed=False)[1][labels]
    return groups_of(labels.tolist())


def groups_of(labels: Sequence[int | bytes]) -> list[list[int]]:
    """Return groups of two or more indices with the same label, the largest first."""
    members: defaultdict[int | bytes, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    return sorted((group for group in members.values() if len(group) > 1), key=lambda group: (-len(group), group))


def _mask(bands: tuple[int, ...]) -> np.uint64:
    # A band takes one bit of each row, so that a plain edge of the picture does not fill whole bands with zeros. A shift by one per row
    # keeps a band from being a column.
    bits = sum(1 << (8 * row + (band + row) % 8) for band in bands for row in range(8))
    return np.uint64(bits)


def _distance(a: Hashes, b: Hashes) -> npt.NDArray[np.int64]:
    """Return the number of different bits of each pair."""
    return np.unpackbits((a ^ b).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.int64)
