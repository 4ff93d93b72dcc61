"""Training on tars in place, for sets larger than memory or the cache's disk: none of their pictures is packed.

A single scan reads every name and caption, but no picture except a sample, which is packed for grids and measures. It leaves the number of
training pictures in each tar, so the n-th picture of any pass is found by reading the headers of a few tars. A pass visits the tars in random
order, and shuffles windows of consecutive pictures: as with a pack, the n-th picture of a run is a pure function of (seed, n).
"""

import functools
import hashlib
import json
import logging
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.files import atomic_folder, cache_dir
from gan_t2i.core.log import bar_options
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.core.threads import cores
from gan_t2i.data import packing, partial, personal
from gan_t2i.data.batches.sampler import Batch
from gan_t2i.data.decode import BadImageError, Pixels, decode_image, load_image
from gan_t2i.data.packing import PackedDataset
from gan_t2i.data.readers import count_unused, find_readers, hub, is_hub
from gan_t2i.data.readers.base import Reading, Source, split_of_name
from gan_t2i.data.readers.tars import caption_key, read_shard
from gan_t2i.data.readers.tree import FolderTree
from gan_t2i.data.records import HELDOUT, TRAIN, BadItem, BadItems, DataReport, Record
from gan_t2i.data.settings import DataSettings
from gan_t2i.data.splits import caption_hash, split_by_caption

log = logging.getLogger(__name__)

INDEX = "stream.json"
SAMPLE = 256  # pictures of each side that are packed, an equal share from each tar
VOCABULARY = 20_000  # training captions that are kept for an encoder that learns its words from them

Decoded = Future[Pixels | BadItem]


class StreamedDataset:
    """The training pictures of some tars, in any order of the tars.

    `sample` holds pictures of both sides, for grids and measures, with the fingerprint and the report of the whole. `index` is the result of
    the scan: names of the tars, their numbers of training pictures, key of the captions, and many training captions.
    """

    def __init__(self, source: Source, sample: PackedDataset, index: dict[str, Any]) -> None:
        self.sample = sample
        self.captions: list[str] = index["captions"]
        self.names: list[str] = index["names"]
        self.counts: list[int] = index["counts"]
        self.settings = source.settings
        self._source = source
        self._key: str | None = index["key"]
        self._shard = functools.lru_cache(maxsize=1)(self._read)  # one tar may reach from a window into the next

    def __len__(self) -> int:
        """Number of training pictures, readable or not."""
        return sum(self.counts)

    def records(self, order: Iterable[int], start: int, stop: int) -> list[Record]:
        """Return the training records start .. stop of a pass through the tars in `order`; raises `GanT2IError` where a tar has changed."""
        found: list[Record] = []
        begin = 0
        for shard in order:
            end = begin + self.counts[shard]
            if begin < stop and end > start and begin < end:
                found += self._shard(shard)[max(start - begin, 0) : stop - begin]
            begin = end
        return found

    def _read(self, shard: int) -> list[Record]:
        reading = _read_tar(self._source, self.names[shard], self._key, _split_by_name(self.names))
        train = [record for record in reading.records if record.split == TRAIN]
        if len(train) != self.counts[shard]:
            raise GanT2IError(f"{self.names[shard]} has changed since training began: it has {len(train)} pictures, not {self.counts[shard]}")
        return train


def open_stream(source: Any, resolution: int, settings: DataSettings | None = None, *, progress: bool = True) -> StreamedDataset:
    """Open the tars of `source`, scanning them on first use or after a change; the cache keeps the result.

    The split of a picture follows from its tar's name, else from the hash of its first caption, as in a pack; of its other captions only those
    with a hash on the same side stay. So each picture's split is known without the others. Raises `UsageError` unless `source` is tars outside
    of a zip, and `GanT2IError` where nothing is left to train on or, with on_bad="error", at the first bad item.
    """
    packing.check_resolution(resolution)
    settings = settings or DataSettings()
    tars = _find_tars(source, settings)
    folder = cache_dir() / "streams" / packing.source_key(Path(source), resolution, settings)
    if not (folder / INDEX).is_file():
        log.info(f"data: scanning {len(tars.entries):,} tars of {source} (once)")
        try:
            with atomic_folder(folder) as temporary:
                _scan(tars, resolution, temporary, progress)
        except OSError:
            # another process may have been faster: its folder is there, and renaming ours over it fails
            if not (folder / INDEX).is_file():
                raise
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    stream = StreamedDataset(tars, PackedDataset.open(folder), index)
    log.info(f"data: {source}, {len(stream):,} training pictures streamed at {resolution} px\n{stream.sample.report}")
    return stream


def _find_tars(source: Any, settings: DataSettings) -> Source:
    if not is_hub(source):
        for reader, found in find_readers(Path(source), settings, BadItems(settings.on_bad)):
            if reader.name == "tars" and isinstance(found.tree, FolderTree):
                return found
    raise UsageError(f"data.stream takes a folder of tars or a pattern such as {{0000..0009}}.tar; {hub.name_of(source)} is neither")


def _split_by_name(names: Sequence[str]) -> bool:
    """True if the names of the tars give both sides; a single side is not a split."""
    return len({split_of_name(name) for name in names}) > 1


def _read_tar(source: Source, name: str, key: str | None, by_name: bool) -> Reading:
    """Read a tar: its records, each with its split and the captions of that side alone, and the bad items."""
    bad = BadItems(source.settings.on_bad)
    reading = read_shard(replace(source, bad=bad), name, key)
    if source.settings.redact:
        personal.redact_reading(reading, bad)
    fraction = source.settings.holdout_fraction
    reading.records = [_with_split(record if by_name else replace(record, split=None), fraction) for record in reading.records]
    reading.bad = bad.items
    return reading


def _with_split(record: Record, fraction: float) -> Record:
    if record.split is not None:
        return record
    heldout = caption_hash(record.captions[0]) < fraction
    captions = tuple(caption for caption in record.captions if (caption_hash(caption) < fraction) == heldout)
    return replace(record, captions=captions, split=HELDOUT if heldout else TRAIN)


@dataclass
class _Scan:
    """Result of the scan so far."""

    counts: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    sample: dict[str, list[Record]] = field(default_factory=lambda: {TRAIN: [], HELDOUT: []})
    totals: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    first_bad: list[BadItem] = field(default_factory=list)
    rest: Reading = field(default_factory=Reading)  # notes, and files that are no part of the tars

    def add(self, tar: Reading, share: int) -> None:
        """Add a tar, of which at most `share` pictures of each side go into the sample."""
        sides = {side: [record for record in tar.records if record.split == side] for side in self.sample}
        for side, chosen in self.sample.items():
            self.totals[side] += len(sides[side])
            chosen += sides[side][: min(share, SAMPLE - len(chosen))]
        self.counts.append(len(sides[TRAIN]))
        self.totals["captions"] += sum(len(record.captions) for record in tar.records)
        captions = [record.captions[0] for record in sides[TRAIN]]
        self.captions += captions[: max(share, share * VOCABULARY // SAMPLE)][: VOCABULARY - len(self.captions)]
        self.rest.add(replace(tar, records=[], notes=tar.notes[:1]))
        self.add_bad(tar.bad)

    def add_bad(self, items: Sequence[BadItem]) -> None:
        """Count bad items."""
        self.bad.update(item.kind for item in items)
        self.first_bad += items[: 5 - len(self.first_bad)]

    def report(self) -> DataReport:
        """Return what `pack` would report of the tars, except for pictures that cannot be decoded."""
        return DataReport(
            pairs=self.totals[TRAIN] + self.totals[HELDOUT],
            captions=self.totals["captions"],
            heldout=self.totals[HELDOUT],
            bad=dict(self.bad.most_common()),
            first_bad=tuple((item.where, item.why) for item in self.first_bad),
            notes=tuple(self.rest.notes),
        )


def _scan(source: Source, resolution: int, folder: Path, progress: bool) -> None:
    """Write the sample, as a packed folder, and the index into `folder`."""
    names, settings, scan, digest = list(source.entries), source.settings, _Scan(), hashlib.sha256()
    key, by_name = caption_key(source), _split_by_name(names)
    reading = Reading()
    for name in tqdm(names, "scanning tars", unit="tar", disable=not progress, **bar_options()):
        reading = _read_tar(source, name, key, by_name)
        scan.add(reading, share=-(-SAMPLE // len(names)))
        digest.update(json.dumps([name, *([record.where, record.captions, record.split] for record in reading.records)]).encode())
    count_unused(source, scan.rest, "tars")
    scan.add_bad(scan.rest.bad)
    if not scan.totals[TRAIN]:
        where = f" (first fault: {scan.first_bad[0].where}: {scan.first_bad[0].why})" if scan.first_bad else ""
        raise GanT2IError(f"no picture to train on in {len(names):,} tars{where}")
    unreadable = BadItems(settings.on_bad)
    sample = [*scan.sample[TRAIN], *scan.sample[HELDOUT]]
    (folder / packing.IMAGES).touch()
    decoded = packing.map_in_threads(sample, lambda record: decode_image(record.image, resolution, settings), cores())
    usable = packing.write_images(folder / packing.IMAGES, sample, decoded, unreadable, digest, partial.Progress(""), progress=False)
    if not any(record.split == TRAIN for record in usable):
        first = unreadable.items[0]
        raise GanT2IError(f"none of {len(sample)} pictures of the tars can be used (first fault: {first.where}: {first.why})")
    split = split_by_caption(usable, settings.holdout_fraction)
    meta = packing.describe(usable, split, [], [], reading, resolution, settings, digest)
    meta["report"] = asdict(scan.report())
    (folder / packing.META).write_text(json.dumps(meta), encoding="utf-8")
    index = {"names": names, "counts": scan.counts, "key": key, "captions": scan.captions}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


class StreamSampler:
    """A `BatchSampler` of streamed tars: windows hold names and captions, and a picture is decoded when its batch is near.

    Another picture of its window replaces one that cannot be decoded; `replaced` counts these. A window has `buffer` pictures, and at most two
    windows of records and two batches of pictures are in memory. All `negatives` captions of a picture are that of the picture before.
    """

    def __init__(self, stream: StreamedDataset, seed: int, buffer: int, negatives: int = 1) -> None:
        self.stream = stream
        self.seed = seed
        self.buffer = buffer
        self.negatives = negatives
        self.replaced = 0
        self.window = functools.lru_cache(maxsize=2)(self._fill)
        Image.init()  # registers every format now: the threads would race to do it
        self._pool = ThreadPoolExecutor(cores())
        self._ahead: dict[int, Decoded] = {}  # position -> picture of the next batch
        # The decoder judges what Pillow warns of; the filter is the whole process's, so it is not set around each picture.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def _fill(self, epoch: int, number: int) -> list[Record]:
        """Return the records of window `number` of a pass, shuffled."""
        order = torch.randperm(len(self.stream.names), generator=seeded_rng(self.seed, "tars", epoch)).tolist()
        records = self.stream.records(order, number * self.buffer, (number + 1) * self.buffer)
        shuffled = torch.randperm(len(records), generator=seeded_rng(self.seed, "window", epoch, number)).tolist()
        return [records[index] for index in shuffled]

    def _find(self, position: int) -> tuple[list[Record], int]:
        """Return the window that holds the picture at `position` of the endless sequence, and its index there."""
        epoch, offset = divmod(position, len(self.stream))
        return self.window(epoch, offset // self.buffer), offset % self.buffer

    def _record(self, position: int) -> Record:
        window, index = self._find(position)
        return window[index]

    def batch(self, nimg: int, count: int, rows: slice = slice(None)) -> Batch:
        """See `BatchSampler`; captions and negatives are ids into the batch's own `texts`."""
        positions = range(nimg, nimg + count)
        records = [self._record(position) for position in positions]
        draws = torch.rand(count, generator=seeded_rng(self.seed, "caption", nimg)).tolist()
        captions = [_choose(record, draw) for record, draw in zip(records, draws, strict=True)]
        before = [captions[-1], *captions[:-1]]
        mask = [negative not in record.captions for negative, record in zip(before, records, strict=True)]
        decoded = self._decode(positions[rows], range(nimg + count, nimg + 2 * count)[rows])
        images = []
        for row, picture in zip(range(count)[rows], decoded, strict=True):
            found = picture.result()
            if isinstance(found, BadItem):
                # Other processes keep the mask of the first picture, so it must hold for the replacement too.
                record, found = self._replace(positions[row], found, before[row] if mask[row] else None)
                captions[row] = _choose(record, draws[row])
            images.append(torch.from_numpy(found))
        texts = tuple(dict.fromkeys([*before, *captions]))
        number = {text: index for index, text in enumerate(texts)}
        negatives = torch.tensor([[number[text]] * self.negatives for text in before], dtype=torch.int64).view(count, self.negatives)
        negative_mask = torch.tensor(mask)[:, None].expand(count, self.negatives)
        ids, shared = torch.tensor([number[text] for text in captions]), torch.ones(count, dtype=torch.bool)
        return Batch(torch.stack(images), ids, negatives, negative_mask, shared, texts)

    def _decode(self, positions: Sequence[int], next_ones: Sequence[int]) -> list[Decoded]:
        """Return the pictures at `positions`, and start to decode the next ones."""
        current = [self._ahead.get(position) or self._submit(position) for position in positions]
        self._ahead = {position: self._submit(position) for position in next_ones}
        return current

    def _submit(self, position: int) -> Decoded:
        return self._pool.submit(self._load, self._record(position))

    def _load(self, record: Record) -> Pixels | BadItem:
        try:
            return load_image(record.image, self.stream.sample.resolution, self.stream.settings)
        except BadImageError as error:
            return BadItem(error.kind, packing.location_of(record), str(error))

    def _replace(self, position: int, bad: BadItem, negative: str | None) -> tuple[Record, Pixels]:
        """Return the next picture in the window that can be decoded, and does not have the caption `negative`."""
        if self.stream.settings.on_bad == "error":
            raise GanT2IError(f"{bad.where}: {bad.why}")
        self.replaced += 1
        if self.replaced & (self.replaced - 1) == 0:
            log.warning(f"unusable pictures of the stream, replaced by others: {self.replaced:,}, the last one {bad.where}: {bad.why}")
        window, index = self._find(position)
        others = deque(window)
        others.rotate(-index - 1)
        for record in others:
            if negative not in record.captions and not isinstance(found := self._load(record), BadItem):
                return record, found
        raise GanT2IError(f"none of {len(window)} consecutive pictures of the tars can be used ({bad.where}: {bad.why})")


def _choose(record: Record, draw: float) -> str:
    """Return the caption at `draw`, a number in [0, 1)."""
    return record.captions[int(draw * len(record.captions))]
