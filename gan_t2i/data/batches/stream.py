"""Tars that are trained on where they lie, for sets that are larger than memory or the disk of the cache: no picture of them is packed.

They are looked through once: every name and caption is read, and no picture, but for a sample of them that is packed for grids and measures.
What is kept of that is how many training pictures each tar has; so the n-th picture of any pass is found by reading the headers of a few tars.
"""

import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.files import atomic_folder, cache_dir
from gan_t2i.data import partial as stopped
from gan_t2i.data import personal
from gan_t2i.data.packing import (
    IMAGES,
    META,
    PackedDataset,
    check_resolution,
    cores,
    decode_all,
    describe,
    source_key,
    write_images,
)
from gan_t2i.data.readers import tars_of
from gan_t2i.data.readers.base import Reading, Source, split_of_name
from gan_t2i.data.readers.tars import caption_key, read_shard
from gan_t2i.data.records import HELDOUT, TRAIN, BadItem, BadItems, DataReport, Record
from gan_t2i.data.settings import DataSettings
from gan_t2i.data.splits import position_of

log = logging.getLogger(__name__)

STREAM = "stream.json"
SAMPLE = 256  # pictures of each side that are packed, an equal share from each tar
VOCABULARY = 20_000  # training captions that are kept for an encoder that learns its words from them


class StreamedDataset:
    """The training pictures of some tars, in any order of the tars.

    Args:
        source: the tars.
        sample: pictures of both sides, for grids and measures; its fingerprint and report are those of the whole.
        index: what `open_stream` found out: the name and the number of training records of each tar, where captions stand, and many of them.
    """

    def __init__(self, source: Source, sample: PackedDataset, index: dict[str, Any]) -> None:
        self.sample = sample
        self.captions: list[str] = index["captions"]
        self.names: list[str] = index["names"]
        self.counts: list[int] = index["counts"]
        self.settings = source.settings
        self._source = source
        self._key: str | None = index["key"]
        # One tar may reach from a window into the next.
        self._shard = functools.lru_cache(maxsize=1)(self._read)

    def __len__(self) -> int:
        """Training pictures, of which some may turn out to be unreadable."""
        return sum(self.counts)

    def records(self, order: Iterable[int], start: int, stop: int) -> list[Record]:
        """The training records start .. stop of a pass through the tars in that `order`; raises `GanT2IError` where a tar has changed."""
        found: list[Record] = []
        begin = 0
        for shard in order:
            end = begin + self.counts[shard]
            if begin < stop and end > start and begin < end:
                found += self._shard(shard)[max(start - begin, 0) : stop - begin]
            begin = end
        return found

    def _read(self, shard: int) -> list[Record]:
        records, _, _ = _records_of(self._source, self.names[shard], self._key, _two_sides(self.names))
        trained = [record for record in records if record.split == TRAIN]
        if len(trained) != self.counts[shard]:
            raise GanT2IError(f"{self.names[shard]} has changed since training began: it has {len(trained)} pictures, not {self.counts[shard]}")
        return trained


def open_stream(
    source: Any,
    resolution: int,
    settings: DataSettings | None = None,
    *,
    progress: bool = True,
) -> StreamedDataset:
    """The tars of `source`, looked through on first use or after a change; what was found is kept in the cache.

    The side of a picture is that of its tar's name, else of the hash of its first caption, as in a pack, and of its other captions those stay
    whose hash is on the same side: so the side is known of each picture by itself. Raises `UsageError` where the source is no tars or a zip of
    them, and `GanT2IError` where nothing is left to train on or, with on_bad="error", at the first bad item.
    """
    check_resolution(resolution)
    settings = settings or DataSettings()
    found = tars_of(source, settings)
    folder = cache_dir() / "streams" / source_key(Path(source), resolution, settings)
    if not (folder / STREAM).is_file():
        log.info(f"data: looking through {len(found.entries):,} tars of {source} (once)")
        try:
            with atomic_folder(folder) as temporary:
                _look_through(found, resolution, temporary, progress)
        except OSError:
            # Another process may have been faster: its folder stands, and renaming ours over it fails.
            if not (folder / STREAM).is_file():
                raise
    index = json.loads((folder / STREAM).read_text(encoding="utf-8"))
    stream = StreamedDataset(found, PackedDataset.open(folder), index)
    log.info(f"data: {source}, {len(stream):,} training pictures streamed at {resolution} px\n{stream.sample.report}")
    return stream


def _two_sides(names: Sequence[str]) -> bool:
    """Whether the names of the tars tell two sides; one alone is no split."""
    return len({split_of_name(name) for name in names}) > 1


def _records_of(source: Source, name: str, key: str | None, by_name: bool) -> tuple[list[Record], Reading, list[BadItem]]:
    """The records of one tar, each with its side and the captions of that side alone; what its reader says, and what it left out."""
    bad = BadItems(source.settings.on_bad)
    reading = read_shard(replace(source, bad=bad), name, key)
    if source.settings.redact:
        personal.redact_reading(reading, bad)
    fraction = source.settings.holdout_fraction
    return [_with_side(record if by_name else replace(record, split=None), fraction) for record in reading.records], reading, bad.items


def _with_side(record: Record, fraction: float) -> Record:
    if record.split is not None:
        return record
    held = position_of(record.captions[0]) < fraction
    captions = tuple(caption for caption in record.captions if (position_of(caption) < fraction) == held)
    return replace(record, captions=captions, split=HELDOUT if held else TRAIN)


@dataclass
class _Found:
    """What is known of the tars that were looked through so far."""

    counts: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    sample: dict[str, list[Record]] = field(default_factory=lambda: {TRAIN: [], HELDOUT: []})
    totals: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    first_bad: list[BadItem] = field(default_factory=list)

    def add(self, records: Sequence[Record], bad: Sequence[BadItem], share: int) -> None:
        """Take in one tar, of which a `share` of pictures may go into the sample."""
        for side, chosen in self.sample.items():
            own = [record for record in records if record.split == side]
            self.totals[side] += len(own)
            chosen += own[: min(share, SAMPLE - len(chosen))]
        self.counts.append(sum(record.split == TRAIN for record in records))
        self.totals["captions"] += sum(len(record.captions) for record in records)
        trained = [record.captions[0] for record in records if record.split == TRAIN]
        self.captions += trained[: max(share, share * VOCABULARY // SAMPLE)][: VOCABULARY - len(self.captions)]
        self.kinds.update(item.kind for item in bad)
        self.first_bad += bad[: 5 - len(self.first_bad)]

    def report(self, notes: Sequence[str]) -> DataReport:
        """What `pack` would report of the tars, but for pictures that cannot be decoded."""
        return DataReport(
            pairs=self.totals[TRAIN] + self.totals[HELDOUT],
            captions=self.totals["captions"],
            heldout=self.totals[HELDOUT],
            bad=dict(self.kinds.most_common()),
            first_bad=tuple((item.where, item.why) for item in self.first_bad),
            notes=tuple(notes),
        )


def _look_through(source: Source, resolution: int, folder: Path, progress: bool) -> None:
    """Write the sample, as a packed folder, and the index into `folder`."""
    names, settings, found, digest = list(source.entries), source.settings, _Found(), hashlib.sha256()
    key, by_name = caption_key(source), _two_sides(names)
    reading = Reading()
    for name in tqdm(names, "looking through tars", unit="tar", disable=not progress):
        records, reading, bad = _records_of(source, name, key, by_name)
        found.add(records, bad, share=-(-SAMPLE // len(names)))
        digest.update(json.dumps([name, *([record.where, record.captions, record.split] for record in records)]).encode())
    if not found.totals[TRAIN]:
        where = f" (first fault: {found.first_bad[0].where}: {found.first_bad[0].why})" if found.first_bad else ""
        raise GanT2IError(f"no picture to train on in {len(names):,} tars{where}")
    unreadable = BadItems(settings.on_bad)
    sample = [*found.sample[TRAIN], *found.sample[HELDOUT]]
    (folder / IMAGES).touch()
    decoded = decode_all(sample, resolution, settings, cores())
    usable = write_images(folder / IMAGES, sample, decoded, unreadable, digest, stopped.Progress(""), show_progress=False)
    if not any(record.split == TRAIN for record in usable):
        first = unreadable.items[0]
        raise GanT2IError(f"none of {len(sample)} pictures of the tars can be used (first fault: {first.where}: {first.why})")
    meta = describe(usable, [], reading, resolution, settings, digest)
    meta["report"] = asdict(found.report(reading.notes[:1]))
    (folder / META).write_text(json.dumps(meta), encoding="utf-8")
    index = {"names": names, "counts": found.counts, "key": key, "captions": found.captions}
    (folder / STREAM).write_text(json.dumps(index), encoding="utf-8")
