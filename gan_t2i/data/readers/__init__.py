"""Readers of captioned pictures: they detect the format of a source, and read its records.

A format is an entry of `READERS`; the first whose `find` recognises the source reads it, be it a folder, a file or a zip of either. Broken
items do not stop a reader: they are counted as `BadItem`, unless the user chooses on_bad="error".
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.words import counted
from gan_t2i.data import personal
from gan_t2i.data.readers import hub
from gan_t2i.data.readers.base import IMAGE_SUFFIXES, NOT_USED, Reader, Reading, Source, printable
from gan_t2i.data.readers.coco import find_coco, find_stylegan, read_coco, read_stylegan
from gan_t2i.data.readers.cub import find_cub, read_cub
from gan_t2i.data.readers.iconify import find_iconify, read_iconify
from gan_t2i.data.readers.imagefolder import find_metadata, find_openclip, read_metadata, read_openclip
from gan_t2i.data.readers.pairs import find_pairs, paired_pictures, read_pairs
from gan_t2i.data.readers.parquet import find_parquet, read_parquet
from gan_t2i.data.readers.tars import expand_braces, find_tars, read_tars
from gan_t2i.data.readers.tree import FileSource, FolderTree, ZipTree, files_below, is_unsafe
from gan_t2i.data.records import BadItem, BadItems
from gan_t2i.data.settings import DataSettings

# In the order of detection: a format may contain files of those below it.
READERS: tuple[Reader, ...] = (
    Reader("imagefolder", "metadata.jsonl, metadata.csv, metadata.parquet", find_metadata, read_metadata, names_pictures=True),
    Reader("openclip", "a tab-separated .csv", find_openclip, read_openclip, names_pictures=True),
    Reader("stylegan", "dataset.json", find_stylegan, read_stylegan, "the labels of dataset.json", True),
    Reader("iconify", "icons.json", find_iconify, read_iconify, "the names of icons"),
    Reader("coco", "captions_*.json", find_coco, read_coco, "COCO captions", True),
    Reader("cub", "train/filenames.pickle", find_cub, read_cub, "CUB's texts"),
    Reader("tars", "*.tar", find_tars, read_tars),
    Reader("parquet", "*.parquet", find_parquet, read_parquet),
    Reader("pairs", "images with same-stem .txt or .caption", find_pairs, read_pairs, "images with same-stem .txt"),
)
_ARCHIVES = ("tars", "parquet")
_LOOKED_FOR = ", ".join(reader.looks_for for reader in READERS[:-1]) + f", or {READERS[-1].looks_for}"


def read(source: Any, settings: DataSettings | None = None) -> Reading:
    """Read `source`: its usable records, in an order that depends on its content alone, the items left out, and notes on the reader's choices.

    Args:
        source: a folder or file, a brace pattern of tars, hf:owner/name, or a `datasets.Dataset` or `DatasetDict`.
        settings: how to read it.

    Raises `UsageError` for a missing path or an unknown caption column, and `GanT2IError` where no pair is usable or, with
    on_bad="error", at the first bad item.
    """
    settings = settings or DataSettings()
    bad = BadItems(settings.on_bad)
    reading = hub.read_hub(source, settings, bad) if is_hub(source) else _read_files(Path(source), settings, bad)
    if settings.redact:
        personal.redact_reading(reading, bad)
    reading.bad = bad.items
    if not reading.records:
        raise GanT2IError(_nothing_usable(source, reading))
    return reading


def _read_files(source: Path, settings: DataSettings, bad: BadItems) -> Reading:
    """Read `source` with the first reader that finds a usable pair, or return what the very first one made of it."""
    failures: list[tuple[str, Reading | GanT2IError]] = []
    for reader, found in find_readers(source, settings, bad):
        found.tree.forget()
        attempt = replace(found, bad=BadItems())
        try:
            reading = reader.read(attempt)
        except GanT2IError as error:
            failures.append((reader.name, error))
            continue
        reading.bad = attempt.bad.items
        count_unused(found, reading, reader.name)
        if reading.records:
            reading.notes += [f"not read in the format {name}: {_why(failure)}" for name, failure in failures]
            break
        failures.append((reader.name, reading))
    else:
        first = failures[0][1]
        if isinstance(first, GanT2IError):
            raise first
        reading = first
    for item in reading.bad:
        bad.add(item.kind, item.where, item.why)
    return reading


def _why(failure: Reading | GanT2IError) -> str:
    if isinstance(failure, GanT2IError):
        return str(failure)
    return f"{failure.bad[0].where}: {failure.bad[0].why}" if failure.bad else "it is empty"


def count_unused(source: Source, reading: Reading, form: str) -> None:
    """Count the files of a whole folder or zip that were not read, and the folders that cannot be listed."""
    if source.is_whole:
        for name in source.tree.not_asked_for():
            reading.pass_over(name)
        for name, why in source.tree.unlisted.items():
            reading.bad.append(BadItem("unreadable folder", printable(name), why))
    reading.note_unused(form)


def is_hub(source: Any) -> bool:
    """Return True if `source` is read through the library `datasets`: an object of it, or hf:owner/name."""
    return hub.is_dataset(source) or os.fspath(source).startswith(hub.PREFIX)


def files_of(source: Path, settings: DataSettings) -> list[str]:
    """Return the paths of all files that reading `source` may open, sorted within each folder; raises `UsageError` if it does not exist."""
    folder, named, archive = _locate(source)
    if archive:
        found = [str(source)]
    elif named and all(name.lower().endswith((".tar", ".parquet")) for name in named):
        found = [os.path.join(folder, name) for name in named]
    else:
        found = _paths_below(folder)
    if settings.image_root is not None:
        found += _paths_below(Path(settings.image_root))
    return found


def _paths_below(folder: Path) -> list[str]:
    # strings: making a Path of each takes a twelfth of packing small pictures
    return [os.path.join(folder, name) for name in sorted(files_below(folder))]


def _locate(source: Path) -> tuple[Path, Sequence[str] | None, bool]:
    """Return (folder or that of a zip, its files to read or None for all, True for a zip); raises `UsageError` if `source` does not exist."""
    if source.is_dir():
        return _hub_snapshot(source) or source, None, False
    if source.is_file():
        archive = source.suffix.lower() == ".zip"
        return source.parent, None if archive else [source.name], archive
    pattern = str(source)
    # braces come after the last folder that exists
    if "{" in pattern and not is_unsafe(pattern.partition("{")[2]):
        folder = Path(pattern.partition("{")[0] + "x").parent
        if folder.is_dir():
            return folder, expand_braces(source.relative_to(folder).as_posix()), False
    raise UsageError(f"data {source} does not exist")


def _hub_snapshot(folder: Path) -> Path | None:
    """Return the snapshot of a repository in the Hugging Face hub's cache, at its main branch or else the newest; None for any other folder."""
    if not all((folder / name).is_dir() for name in ("blobs", "snapshots")):
        return None
    with contextlib.suppress(OSError):
        main = folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        if main.is_dir():
            return main
    snapshots = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
    return max(snapshots, key=lambda path: path.stat().st_mtime_ns, default=None)


def find_readers(source: Path, settings: DataSettings, bad: BadItems) -> list[tuple[Reader, Source]]:
    """Return the readers that `source` may be for, the likeliest first, and the files that each would read; raises `UsageError` where there
    is none."""
    folder, named, archive = _locate(source)
    if settings.image_root is not None and not Path(settings.image_root).is_dir():
        raise UsageError(f"image_root {settings.image_root} is not a folder")
    tree = ZipTree(source, bad) if archive else FolderTree(folder)
    wanted = [reader for reader in READERS if settings.format in ("auto", reader.name)]
    found = [(reader, entries) for reader in wanted if (entries := reader.find(tree, named))]
    if settings.format != "auto" and not found:
        raise UsageError(f"data {source} is not in the format {settings.format}: it has no {wanted[0].looks_for}")
    if not found:
        raise UsageError(f"data {source} is neither a folder nor a .zip, .jsonl, .csv, .json, .tar or .parquet file")
    if settings.caption_column is not None:
        if all(reader.no_columns for reader, _ in found):
            raise UsageError(
                f"caption_column {settings.caption_column} is for tables and metadata, and {found[0][0].no_columns} have no columns"
            )
        found = [(reader, entries) for reader, entries in found if reader.no_columns is None]
    if settings.image_root is not None:
        found = [(reader, entries) for reader, entries in found if reader.names_pictures]
        if not found:
            raise UsageError(
                f"image_root {settings.image_root} is for a table, COCO or dataset.json file, and {source} is not one: name the file"
            )
    if named is None and len(found) > 1:
        found.sort(key=lambda one: _is_outnumbered(tree, *one))
    return [(reader, Source(tree, entries, settings, bad, is_whole=named is None)) for reader, entries in found]


def _is_outnumbered(tree: FileSource, reader: Reader, entries: Sequence[str]) -> bool:
    """Return True for archives, and for tables in subfolders, that lie beside as many pairs or more, which they must not displace."""
    if reader.name in _ARCHIVES:
        return len(entries) <= len(paired_pictures(tree))
    if reader.name == "imagefolder" and all("/" in name for name in entries):
        folders = tuple(f"{name.rpartition('/')[0]}/" for name in entries)
        described = sum(name.startswith(folders) and name.lower().endswith(IMAGE_SUFFIXES) for name in tree.names)
        return described <= sum(not name.startswith(folders) for name in paired_pictures(tree))
    return False


def _nothing_usable(source: Any, reading: Reading) -> str:
    message = f"no usable pair in {hub.name_of(source)}: found {counted(reading.images, 'image')}, {counted(reading.captions, 'caption')}"
    alone = [item.where for item in reading.bad if item.kind == "image without caption" and item.where.lower().endswith(IMAGE_SUFFIXES)]
    if alone:
        message += f"; put {os.path.splitext(alone[0])[0]}.txt beside {alone[0]}, or add metadata.jsonl"
    message += f"; looked for {_LOOKED_FOR}"
    # the counts are enough where only pictures or captions are missing
    others = [item for item in reading.bad if item.kind not in ("image without caption", "caption without image")]
    message += f" (first fault: {others[0].where}: {others[0].why})" if others else ""
    return "; ".join([message, *(note for note in reading.notes if note.startswith(NOT_USED))])
