"""Tables of captions beside pictures: metadata.jsonl, .csv or .parquet, as in Hugging Face's imagefolder, and OpenCLIP's tab-separated CSV."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.readers.base import (
    FILE_COLUMNS,
    SPLIT_NAMES,
    Gallery,
    Reading,
    Row,
    Source,
    captions_of_value,
    choose_column,
    decoded,
    either,
    split_of_name,
)
from gan_t2i.data.readers.tables import csv_rows, jsonl_rows, parquet_file, parquet_rows
from gan_t2i.data.readers.tree import FileSource, Rejected
from gan_t2i.data.records import BadItems

SUFFIXES = (".jsonl", ".csv", ".parquet")
METADATA = tuple(f"metadata{suffix}" for suffix in SUFFIXES)
FILE_PATH = "filepath"  # OpenCLIP's name for the picture's column


def find_metadata(tree: FileSource, named: Sequence[str] | None) -> Sequence[str]:
    """Find the metadata of the folder, or else of its subfolders, which may be train, validation and test."""
    if named is not None:
        return [
            name
            for name in named
            if name.lower().endswith(".jsonl") or name in METADATA or (name.lower().endswith((".csv", ".tsv")) and not _is_tabbed(tree, name))
        ]
    for name in METADATA:
        if tree.is_file(name):
            return [name]
    return [name for name in tree.names if name.count("/") == 1 and name.partition("/")[2] in METADATA]


def read_metadata(source: Source) -> Reading:
    """Read rows with one of `FILE_COLUMNS` (relative to the image root or the metadata's folder), a caption column, split and any others."""
    reading = source.read_each(_read_metadata)
    return reading.without_single_side() if len(source.entries) > 1 else reading


def _read_metadata(source: Source, name: str) -> Reading:
    folder = PurePosixPath(name).parent.as_posix().removeprefix(".")
    rows = list(_rows(source.tree, name, source.bad))
    reading = _read_table(source, source.pictures(folder), name, rows)
    side = split_of_name(folder)
    reading.records = [record if record.split else replace(record, split=side) for record in reading.records]
    return reading


def _rows(tree: FileSource, name: str, bad: BadItems) -> Iterator[Row]:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".parquet":
        file = parquet_file(tree, name)
        # neither pictures, which belong to another format, nor types that JSON lacks
        columns = [field.name for field in file.schema_arrow if not re.search("binary|date|time|decimal|duration", str(field.type))]
        return (row for _, _, row in parquet_rows(file, name, columns, bad))
    return jsonl_rows(tree, name, bad) if suffix == ".jsonl" else csv_rows(tree, name, bad)


def _read_table(source: Source, pictures: FileSource, name: str, rows: list[Row]) -> Reading:
    label = PurePosixPath(name).name
    columns = dict.fromkeys(key for _, row in rows for key in row)
    file = next((name for name in FILE_COLUMNS if name in columns), FILE_COLUMNS[0])
    if columns and file not in columns:
        names = " ".join(", ".join(columns).split())
        raise GanT2IError(f"{label} has no column {either(FILE_COLUMNS)} that names the pictures; its columns are: {names}")
    column = choose_column(label, [row for _, row in rows], source.settings.caption_column, (file, "split"))
    pictures_from = f', pictures from column "{file}"' * (file != FILE_COLUMNS[0])
    reading = Reading(notes=[f'captions from column "{column}"{pictures_from} of {label}'])
    bad = source.bad
    gallery = Gallery(pictures, reading, bad, file)
    for where, row in rows:
        picture = gallery.find(row, where)
        if picture is None:
            continue
        split = row.get("split")
        if split not in (None, "") and (not isinstance(split, str) or split.strip().lower() not in SPLIT_NAMES):
            bad.add("unknown split", where, f"split must be one of: {', '.join(sorted(SPLIT_NAMES))}; not {split!r}")
            continue
        captions = captions_of_value(row.get(column), repr(row[file]), where, bad)
        side = SPLIT_NAMES[split.strip().lower()] if split else None
        extra = {key: item for key, item in row.items() if key not in (file, "split", column)}
        gallery.keep(picture, captions, where, side, extra)
    return reading


def find_openclip(tree: FileSource, named: Sequence[str] | None) -> Sequence[str]:
    names = [name for name in tree.names if "/" not in name] if named is None else named
    return [name for name in names if name.lower().endswith((".csv", ".tsv")) and _is_tabbed(tree, name)]


def _is_tabbed(tree: FileSource, name: str) -> bool:
    try:
        head = decoded(tree.read(name, 4095)).split("\n")[0]
    except Rejected:
        return False
    return FILE_PATH in head and "\t" in head


def read_openclip(source: Source) -> Reading:
    """Read the rows of OpenCLIP's CSV: the columns filepath and title, or another caption column."""
    return source.read_each(_read_openclip)


def _read_openclip(source: Source, name: str) -> Reading:
    rows = list(csv_rows(source.tree, name, source.bad))
    column = choose_column(name, [row for _, row in rows], source.settings.caption_column, (FILE_PATH,))
    reading = Reading(notes=[f'captions from column "{column}" of {name}'])
    gallery = Gallery(source.pictures(), reading, source.bad, FILE_PATH)
    for where, row in rows:
        picture = gallery.find(row, where)
        if picture is not None:
            gallery.keep(picture, captions_of_value(row.get(column), repr(row[FILE_PATH]), where, source.bad), where)
    return reading
