"""Near duplicates: the hash against its definition, groups against a comparison of all pairs, and their cost."""

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from gan_t2i.data import duplicates
from gan_t2i.data.duplicates import MAX_DISTANCE, coarse_colours, difference_hash, groups_of, near_groups


def photograph(seed: int, size: int = 96) -> Image.Image:
    """Return smooth noise, as different from that of another seed as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def test_the_hash_is_of_neighbours_in_a_row() -> None:
    falling = Image.fromarray(np.tile(np.linspace(255, 0, 9, dtype=np.uint8), (8, 1)))
    assert difference_hash(falling) == 2**64 - 1
    assert difference_hash(falling.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    one = Image.new("L", (9, 8))
    one.putpixel((1, 0), 255)  # brighter than its right neighbour, in the first row
    assert difference_hash(one) == 1 << 62


def test_a_recompressed_and_resized_copy_is_near_and_another_picture_is_not() -> None:
    pictures = [photograph(seed) for seed in range(40)]
    file = io.BytesIO()
    pictures[7].resize((61, 61)).save(file, "JPEG", quality=60)
    pictures.append(Image.open(file).convert("RGB"))
    hashes = np.array([difference_hash(picture) for picture in pictures], dtype=np.uint64)
    assert near_groups(hashes, np.stack([coarse_colours(picture) for picture in pictures])) == [[7, 40]]


def test_another_colour_is_another_picture() -> None:
    def circle(colour: str) -> Image.Image:
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).ellipse((12, 12, 52, 52), fill=colour)
        return picture

    pictures = [circle(colour) for colour in ("red", "blue", "red")]
    hashes = np.array([difference_hash(picture) for picture in pictures], dtype=np.uint64)
    assert len(set(hashes.tolist())) == 1
    assert near_groups(hashes, np.stack([coarse_colours(picture) for picture in pictures])) == [[0, 2]]


def test_every_pair_within_the_distance_is_found_and_no_other() -> None:
    rng = random.Random(0)
    values = []
    for distance in range(9):
        for _ in range(40):
            value = rng.getrandbits(64)
            flipped = value
            for bit in rng.sample(range(64), distance):
                flipped ^= 1 << bit
            values += [value, flipped]
    found = near_groups(np.array(values, dtype=np.uint64), np.zeros((len(values), 48), dtype=np.uint8))
    expected = [[i, i + 1] for i in range(0, len(values), 2) if (values[i] ^ values[i + 1]).bit_count() <= MAX_DISTANCE]
    assert sorted(found) == expected
    assert len(expected) == 5 * 40


def test_twenty_thousand_pictures_on_white_take_few_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Low hashes that share most of their bits are the worst case: N^2 / 2 would be 200 million comparisons."""
    compared = 0
    distance = duplicates._distance

    def counting(a: duplicates.Hashes, b: duplicates.Hashes) -> np.ndarray:
        nonlocal compared
        compared += len(a)
        return distance(a, b)

    monkeypatch.setattr(duplicates, "_distance", counting)
    rng = np.random.default_rng(0)
    hashes = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (6, 20_000), dtype=np.uint64))
    near_groups(hashes, rng.integers(0, 256, (20_000, 48), dtype=np.uint8))
    assert 0 < compared < 70 * 16 * 20_000 / 2
    compared = 0
    near_groups(np.zeros(1000, dtype=np.uint64), rng.integers(0, 256, (1000, 48), dtype=np.uint8))  # one hash, and all colours
    assert 0 < compared <= 70 * 16 * 1000


def test_groups() -> None:
    assert groups_of([b"a", b"b", b"a", b"c", b"b", b"b"]) == [[1, 4, 5], [0, 2]]
    assert near_groups(np.empty(0, dtype=np.uint64), np.empty((0, 48), dtype=np.uint8)) == []
