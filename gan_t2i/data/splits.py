"""Split into training and held-out pictures, such that no caption is on both sides."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.records import HELDOUT, TRAIN, Record


class Split(NamedTuple):
    """Each record's remaining captions, True for each record that is held out, and the number of captions dropped."""

    captions: list[tuple[str, ...]]
    heldout: list[bool]
    dropped: int


def split_by_caption(records: Sequence[Record], fraction: float) -> Split:
    """Hold out about `fraction` of the first captions with all their pictures; no caption stays on both sides.

    A record's own `split` decides for it, and for every record without one that has the same first caption. The others are held out if
    the hash of their first caption is below `fraction`. With a fraction above 0 and at least two first captions, at least one of those
    without a `split` is held out, and one is trained on, unless records with a `split` already provide it.

    A caption of both sides stays where it is some record's first, else on the held-out side, and is dropped from the other; so every
    record keeps its first one. Only records whose own splits contradict each other may lose all: a training record with all captions held
    out is held out too. Captions are dropped, not moved, because a single common caption would otherwise pull all records that share it,
    and in turn theirs, out of training. Raises `GanT2IError` where nothing is left to train on.
    """
    held_first = _held_first_captions(records, fraction)
    # A training record's own split wins over its caption's; the contradiction is resolved below.
    heldout = [record.split == HELDOUT or (record.split is None and record.captions[0] in held_first) for record in records]
    sides: dict[bool, set[str]] = {False: set(), True: set()}
    firsts: dict[bool, set[str]] = {False: set(), True: set()}
    for record, side in zip(records, heldout, strict=True):
        sides[side].update(record.captions)
        firsts[side].add(record.captions[0])
    shared = sides[True] & sides[False]
    to_train = {caption for caption in shared if caption in firsts[False] and caption not in firsts[True]}
    drop = {True: to_train, False: shared - to_train}
    captions = [tuple(c for c in record.captions if c not in drop[side]) for record, side in zip(records, heldout, strict=True)]
    for index, remaining in enumerate(captions):
        if not remaining:
            captions[index] = records[index].captions
            heldout[index] = True
    if all(heldout):
        raise GanT2IError("no picture is left to train on: the data's own split holds out every caption; remove the key split")
    before = sum(len(record.captions) for record in records)
    return Split(captions, heldout, before - sum(map(len, captions)))


def _held_first_captions(records: Sequence[Record], fraction: float) -> set[str]:
    """Return the first captions whose records without a split are held out."""
    own: dict[str, set[str]] = {side: {r.captions[0] for r in records if r.split == side} for side in (TRAIN, HELDOUT)}
    counts = Counter(r.captions[0] for r in records if r.split is None)
    hashes = {caption: caption_hash(caption) for caption in counts if caption not in own[TRAIN] | own[HELDOUT]}
    free = sorted(hashes, key=hashes.__getitem__)
    chosen = [caption for caption in free if hashes[caption] < fraction]
    if fraction > 0 and free:
        if not chosen and not own[HELDOUT] and (len(free) > 1 or own[TRAIN]):
            # the caption with the fewest pictures, so that as many as possible are trained on
            chosen = [min(free, key=lambda caption: counts[caption])]
        elif len(chosen) == len(free) and not own[TRAIN]:
            chosen = chosen[:-1]
    return own[HELDOUT] | set(chosen)


def caption_hash(caption: str) -> float:
    """Return the hash of a caption as a number in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest()) / 2**64
