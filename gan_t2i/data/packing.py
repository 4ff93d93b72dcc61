"""Captioned pictures, decoded once at the training resolution: memory-mapped raw uint8, and a JSON file with everything else.

Legend: N pictures, B batch, C channels (3, or 4 with alpha, premultiplied), R resolution in pixels. A packed folder holds ``images.u8`` (uint8
[N, C, R, R], no header) and ``meta.json``.
"""

import contextlib
import errno
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import os
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.files import atomic_folder, cache_dir, check_new
from gan_t2i.core.log import bar_options
from gan_t2i.core.threads import cores
from gan_t2i.data import partial, svg
from gan_t2i.data.captions import apply_forms, augment, describe_augmentation
from gan_t2i.data.decode import BadImageError, Decoded, decode_image, to_image
from gan_t2i.data.readers import files_of, hub, is_hub, read
from gan_t2i.data.readers.base import Reading, printable
from gan_t2i.data.recolour import Copy, append_copies
from gan_t2i.data.records import HELDOUT, TRAIN, BadItem, BadItems, DataReport, LazyFile, Record
from gan_t2i.data.settings import DataSettings
from gan_t2i.data.splits import Split, split_by_caption

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
IMAGES = "images.u8"
META = "meta.json"
CHUNK = 16  # pictures that a thread decodes per task
CHUNKS_WAITING = 4  # per thread: in memory when the disk is slower than the decoders
WRITE_BUFFER = 1 << 20  # bytes
NOTICEABLE = 0.05  # share of transparent pictures that a report without alpha mentions
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Indices = npt.NDArray[np.int64]
Result = TypeVar("Result")


class PackedDataset:
    """A packed folder, memory-mapped, so that several processes share one copy of the pictures."""

    def __init__(self, folder: Path, images: "np.memmap[Any, np.dtype[np.uint8]]", meta: dict[str, Any]) -> None:
        self.folder = folder
        self.images = images  # [N, C, R, R], read-only
        self.resolution: int = meta["resolution"]
        self.channels: int = images.shape[1]
        self.captions: list[str] = meta["captions"]  # each once, in the order of first use
        self.caption_ids: list[tuple[int, ...]] = [tuple(ids) for ids in meta["caption_ids"]]  # by picture
        self.train: Indices = np.asarray(meta[TRAIN], dtype=np.int64)  # picture indices
        self.heldout: Indices = np.asarray(meta[HELDOUT], dtype=np.int64)
        self.extras: list[dict[str, Any]] = meta["extras"]  # by picture
        self.recoloured: dict[int, list[int]] = {}  # copies, on neither side of the split, by their training picture
        originals = meta.get("originals", [])
        for copy, original in enumerate(originals, start=len(self.caption_ids) - len(originals)):
            self.recoloured.setdefault(original, []).append(copy)
        self.fingerprint: str = meta["fingerprint"]
        self.report = DataReport(**meta["report"])
        # a plain view: indexing a memmap wraps every result in another one
        self._pixels: npt.NDArray[np.uint8] = np.asarray(images)  # [N, C, R, R]

    def __len__(self) -> int:
        return len(self.caption_ids)

    @cached_property
    def train_caption_ids(self) -> list[int]:
        """Ids of the captions of the training pictures and of their copies, each once, sorted."""
        return sorted({caption for item in self.shown.tolist() for caption in self.caption_ids[item]})

    @cached_property
    def shown(self) -> Indices:
        """The training pictures, then all their copies."""
        return np.asarray([*self.train.tolist(), *itertools.chain(*self.recoloured.values())], dtype=np.int64)

    @cached_property
    def shared_captions(self) -> frozenset[int]:
        """Ids of the captions that several training pictures or their copies have."""
        pictures = Counter(caption for item in self.shown.tolist() for caption in set(self.caption_ids[item]))
        return frozenset(caption for caption, count in pictures.items() if count > 1)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the packed `folder`; raises `GanT2IError` where a file is missing, short, damaged or of another format version."""
        folder = Path(folder)
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            size = (folder / IMAGES).stat().st_size
        except OSError as error:
            raise GanT2IError(f"packed data {folder} cannot be opened: {Path(error.filename).name}: {error.strerror}") from error
        except ValueError as error:
            raise GanT2IError(f"packed data {folder} is damaged: {META} is not JSON; remove the folder and pack again") from error
        version = meta.get("format_version") if isinstance(meta, dict) else None
        if version != FORMAT_VERSION:
            raise GanT2IError(f"packed data {folder} has format version {version}, not {FORMAT_VERSION}; remove the folder and pack again")
        meta.setdefault("channels", 3)  # missing in folders from before alpha
        try:
            if fault := _fault_in(meta):
                fault = f"{fault} in {META}"
            else:
                shape = (len(meta["caption_ids"]), meta["channels"], meta["resolution"], meta["resolution"])
                if size == math.prod(shape):
                    return cls(folder, np.memmap(folder / IMAGES, dtype=np.uint8, mode="r", shape=shape), meta)
                fault = f"{IMAGES} has {size} bytes, not {math.prod(shape)}"
        except (KeyError, TypeError) as error:
            fault = f"{META} lacks {error}"
        raise GanT2IError(f"packed data {folder} is damaged: {fault}; remove the folder and pack again")

    def records(self) -> list[Record]:
        """Return the pictures as a reader yields them, without copies; their bytes are encoded when they are read."""
        heldout = set(self.heldout.tolist())
        return [
            Record(
                LazyFile(f"picture {index}", functools.partial(self._encode, index)),
                tuple(self.captions[number] for number in ids),
                f"{IMAGES}:{index}",
                HELDOUT if index in heldout else TRAIN,
                self.extras[index],
            )
            for index, ids in enumerate(self.caption_ids[: len(self) - sum(map(len, self.recoloured.values()))])
        ]

    def _encode(self, index: int) -> bytes:
        file = io.BytesIO()
        to_image(self._pixels[index]).save(file, "PNG" if self.channels == 4 else "BMP", compress_level=1)
        return file.getvalue()

    def gather(self, indices: "Sequence[int] | Indices | torch.Tensor") -> "torch.Tensor":
        """Return the pictures at `indices` [B] as a new uint8 tensor [B, 3, R, R]; transparency is composited on grey."""
        packed = self.gather_packed(indices)
        if self.channels == 3:
            return packed
        from gan_t2i.core.images import composite_on_grey_uint8

        return composite_on_grey_uint8(packed)

    def gather_packed(self, indices: "Sequence[int] | Indices | torch.Tensor") -> "torch.Tensor":
        """Return the pictures at `indices` [B] as packed: a new uint8 tensor [B, C, R, R]."""
        # imported here, so that commands that only pack or list data start fast
        import torch

        return torch.from_numpy(self._pixels[np.asarray(indices, dtype=np.int64)])


def pack(
    source: Any,
    destination: Path,
    resolution: int,
    settings: DataSettings | None = None,
    *,
    progress: bool = True,
    workers: int | None = None,
) -> PackedDataset:
    """Decode the pictures of `source` at `resolution` into the new folder `destination`, which appears only when it is complete.

    `source` is a path, hf:owner/name or a `datasets.Dataset`, as for `readers.read`. Ctrl-C saves the progress in a hidden folder beside
    `destination`, and the same call resumes from it. The result does not depend on `workers` (threads; all cores by default). Raises
    `UsageError` for a wrong option, for a `source` that is packed, or where `destination` is not empty, and `GanT2IError` where no pair is
    usable or, with on_bad="error", at the first bad item.
    """
    check_resolution(resolution)
    settings = settings or DataSettings()
    destination = Path(destination)
    check_new(destination)
    name = hub.name_of(source)
    source = hub.load(source) if is_hub(source) else Path(source)
    if isinstance(source, Path) and is_packed(source):
        raise UsageError(f"{source} is packed already: train on it as it is, or pack the pictures that it was made from")
    reading = read(source, settings)
    try:
        with atomic_folder(destination) as folder:
            bad = BadItems(settings.on_bad)
            digest = hashlib.sha256()
            images = folder / IMAGES
            state = partial.resume(destination, images, source_key(source, resolution, settings), settings.channels * resolution**2)
            rest = reading.records[state.done :]
            decoded = map_in_threads(rest, lambda record: decode_image(record.image, resolution, settings), workers or cores())
            try:
                records = write_images(images, reading.records, decoded, bad, digest, state, progress)
            except KeyboardInterrupt:
                partial.save(destination, images, state)
                raise
            if not records:
                first = bad.items[0]
                message = f"no usable pair in {name}: none of its {len(reading.records)} images can be used"
                raise GanT2IError(f"{message} (first fault: {first.where}: {first.why})")
            if settings.alpha and not state.transparent:
                reading.notes.append("no picture has a transparent pixel, so alpha adds nothing: leave it out")
            elif not settings.alpha and state.transparent >= NOTICEABLE * len(records):
                reading.notes.append(f"transparent: {describe_transparency(state.transparent, len(records), settings)}")
            split = split_by_caption(records, settings.holdout_fraction)
            copies = append_copies(images, split, resolution, settings, digest)
            meta = describe(records, split, copies, bad.items, reading, resolution, settings, digest)
            (folder / META).write_text(json.dumps(meta), encoding="utf-8")
    except OSError as error:
        if error.errno not in FULL:
            raise
        size = len(reading.records) * settings.channels * resolution**2 / 1e6
        message = f"cannot write {destination}: {error.strerror}; {size:,.0f} MB are needed"
        raise GanT2IError(f"{message}: free some space, or name another folder (for the cache, in GAN_T2I_CACHE)") from error
    return PackedDataset.open(destination)


def load_dataset(source: Any, resolution: int, settings: DataSettings | None = None, *, progress: bool = True) -> PackedDataset:
    """Open the pictures of `source` at `resolution`, packing them into the cache on first use or after a change.

    `source` may also be a folder that `pack` wrote, at the same resolution. Errors as for `pack`.
    """
    check_resolution(resolution)
    settings = settings or DataSettings()
    name = hub.name_of(source)
    if is_hub(source):
        source = hub.load(source)
    else:
        source = Path(source)
        if is_packed(source):
            return _open_packed(source, resolution, settings)
    folder = cache_dir() / "packed" / source_key(source, resolution, settings)
    if is_packed(folder):
        dataset = PackedDataset.open(folder)
        log.info(f"data: {name} at {resolution} px, packed before in {folder}\n{dataset.report}")
        return dataset
    log.info(f"data: packing {name} at {resolution} px into {folder} (once)")
    try:
        dataset = pack(source, folder, resolution, settings, progress=progress)
    except (OSError, UsageError):
        # another process may have been faster: its folder is there, and renaming ours over it fails
        if not is_packed(folder):
            raise
        dataset = PackedDataset.open(folder)
    log.info(str(dataset.report))
    return dataset


def _fault_in(meta: dict[str, Any]) -> str | None:
    """Return the first fault of `meta` that training would stumble over, if any; raises KeyError where a part is missing."""
    captions, ids, extras = meta["captions"], meta["caption_ids"], meta["extras"]
    if not all(isinstance(part, list) for part in (captions, ids, extras, meta[TRAIN], meta[HELDOUT])):
        return "a part is not a list"
    if type(meta["resolution"]) is not int or meta["resolution"] < 1 or not isinstance(meta["fingerprint"], str):
        return "the resolution or the fingerprint is not valid"
    if meta["channels"] not in (3, 4):
        return "the channels are neither 3 nor 4"
    if not all(isinstance(caption, str) for caption in captions) or len(extras) != len(ids) or not all(isinstance(e, dict) for e in extras):
        return "a caption or an extra is not valid"
    if not all(isinstance(of_one, list) and of_one and _are_indices(of_one, len(captions)) for of_one in ids):
        return "a picture has no caption"
    if not _are_indices(meta[TRAIN] + meta[HELDOUT] + meta.get("originals", []), len(ids)):
        return "the split names a picture that is not there"
    return None


def _are_indices(values: list[Any], count: int) -> bool:
    return all(type(value) is int and 0 <= value < count for value in values)


def check_resolution(resolution: int) -> None:
    """Raise `UsageError` unless the resolution is a power of two from 16 to 512."""
    if resolution not in (16, 32, 64, 128, 256, 512):
        raise UsageError(f"resolution must be a power of two from 16 to 512, not {resolution}")


def is_packed(folder: Path) -> bool:
    """Return True if `folder` looks like one that `pack` wrote."""
    return (folder / META).is_file() and (folder / IMAGES).is_file()


def _open_packed(source: Path, resolution: int, settings: DataSettings) -> PackedDataset:
    dataset = PackedDataset.open(source)
    if dataset.resolution != resolution:
        raise UsageError(f"resolution must be {dataset.resolution}, at which {source} is packed, not {resolution}")
    if dataset.channels != settings.channels:
        with_alpha = dataset.channels == 4
        raise UsageError(f"data.alpha must be {str(with_alpha).lower()}: {source} is packed {'with' if with_alpha else 'without'} transparency")
    if settings.recolour and not dataset.recoloured:
        log.warning(f"data.recolour is not used: {source} was packed without copies (data pack --recolour {settings.recolour} makes them)")
    log.info(f"data: {source}, packed at {resolution} px\n{dataset.report}")
    return dataset


def source_key(source: Any, resolution: int, settings: DataSettings) -> str:
    """Return a hash of everything that the packed result depends on; `source` is a path or an object of the library `datasets`."""
    contents = hub.fingerprints(source) if hub.is_dataset(source) else [str(source.resolve()), _stamps(source, settings)]
    chosen = settings.model_dump(mode="json", include=set(DataSettings.model_fields))
    return hashlib.sha256(json.dumps([FORMAT_VERSION, resolution, chosen, contents, svg.is_installed()]).encode()).hexdigest()[:32]


def _stamps(source: Path, settings: DataSettings) -> list[tuple[str, int, int]]:
    """Return name, size and modification time of each file that the result depends on, without reading any."""
    result = []
    for path in files_of(source, settings):
        try:
            stat = os.stat(path)
        except OSError:  # a broken link, which the reader counts
            continue
        result.append((path, stat.st_size, stat.st_mtime_ns))
    return result


def map_in_threads(records: Sequence[Record], work: Callable[[Record], Result], workers: int) -> Generator[Result | BadImageError, None, None]:
    """Yield the result of `work` for each record, or the `BadImageError` that it raises, in order; few results wait in memory."""
    abandoned = threading.Event()

    def attempt(chunk: Sequence[Record]) -> list[Result | BadImageError]:
        results: list[Result | BadImageError] = []
        for record in chunk:
            if abandoned.is_set():
                break
            try:
                results.append(work(record))
            except BadImageError as error:
                results.append(error)
        return results

    Image.init()  # registers every format now: the threads would race to do it
    # Threads, as Pillow's decoders release the GIL: on two shared cores 800 PNGs of 256 px a second (one thread 550, two warm processes
    # 900). Unlike processes they start at once and need no guard in the caller's __main__. In chunks, because passing a small picture
    # between threads takes a tenth of its decoding.
    waiting: deque[Future[list[Result | BadImageError]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for start in range(0, len(records), CHUNK):
                waiting.append(pool.submit(attempt, records[start : start + CHUNK]))
                if len(waiting) == CHUNKS_WAITING * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            abandoned.set()
            pool.shutdown(cancel_futures=True)


def write_images(
    path: Path,
    records: Sequence[Record],
    decoded: Generator[Decoded | BadImageError, None, None],
    bad: BadItems,
    digest: "hashlib._Hash",
    state: partial.Progress,
    progress: bool,
) -> list[Record]:
    """Append the pictures after `state` to `path`; returns the records with usable pictures, all of which go into `digest`."""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    for index, (kind, why) in state.faults.items():
        bad.add(kind, location_of(records[index]), why)
    bar = tqdm(records[state.done :], "packing", len(records), unit="img", initial=state.done, disable=not progress, **bar_options())
    # Pillow warns of large pictures or broken EXIF blocks without the picture's name; such faults are reported here.
    with warnings.catch_warnings(), open(path, "ab", WRITE_BUFFER) as file, contextlib.closing(decoded):
        warnings.simplefilter("ignore")
        for index, (record, result) in enumerate(zip(bar, decoded, strict=True), start=state.done):
            if isinstance(result, BadImageError):
                bad.add(result.kind, location_of(record), str(result))
                state.faults[index] = (result.kind, str(result))
            else:
                file.write(result.pixels.data)
                digest.update(result.pixels.data)
                state.transparent += result.is_transparent
            state.done = index + 1
    return [record for index, record in enumerate(records) if index not in state.faults]


def describe_transparency(count: int, pictures: int, settings: DataSettings) -> str:
    """Return how many of the pictures are transparent, and what becomes of it."""
    return f"{count:,} of {pictures:,} pictures; " + ("kept" if settings.alpha else f"drawn on {settings.background}; --alpha keeps it")


def location_of(record: Record) -> str:
    """Return the location of a picture for messages: its line in the metadata or its caption file, and its own file."""
    return f"{record.where} ({printable(record.image.name)})"


def describe(
    records: Sequence[Record],
    split: Split,
    copies: Sequence[Copy],
    bad: Sequence[BadItem],
    reading: Reading,
    resolution: int,
    settings: DataSettings,
    digest: "hashlib._Hash",
) -> dict[str, Any]:
    """Return the content of meta.json; `digest` has seen the pictures, of which `copies` are the last."""
    table: dict[str, int] = {}
    captions = [*augment(split, settings), *(apply_forms(settings.caption_forms, copy.captions) for copy in copies)]
    ids = [[table.setdefault(caption, len(table)) for caption in each] for each in captions]
    train = [index for index, heldout in enumerate(split.heldout) if not heldout]
    heldout = [index for index, heldout in enumerate(split.heldout) if heldout]
    notes = [*reading.notes, *describe_augmentation(settings)]
    if settings.recolour:
        notes.append(f"{len(copies):,} copies of {len({copy.original for copy in copies}):,} training pictures in other colours")
    report = DataReport.of(records, [*reading.bad, *bad], notes)
    report = replace(report, captions=sum(map(len, ids[: len(records)])), heldout=len(heldout), dropped_captions=split.dropped)
    digest.update(json.dumps([resolution, list(table), ids, train, heldout]).encode())
    return {
        "format_version": FORMAT_VERSION,
        "resolution": resolution,
        "channels": settings.channels,
        "captions": list(table),
        "caption_ids": ids,
        TRAIN: train,
        HELDOUT: heldout,
        "originals": [copy.original for copy in copies],
        "extras": [*(dict(record.extra) for record in records), *({"colour": copy.colour} for copy in copies)],
        "fingerprint": digest.hexdigest(),
        "report": asdict(report),
    }
