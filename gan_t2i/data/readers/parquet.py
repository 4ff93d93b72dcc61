"""Parquet files that contain the pictures, as of img2dataset (a column jpg, png or webp) and of the Hugging Face hub (a column of bytes and
path)."""

import functools
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.readers.base import CAPTION_COLUMNS, Reading, Source, captions_of_value, choose_column, split_of_name
from gan_t2i.data.readers.tables import parquet_file, parquet_rows
from gan_t2i.data.readers.tree import MAX_MEMBER, TOO_LARGE, FileSource
from gan_t2i.data.records import LazyFile, Record

# in order of preference; without any of these, another column of bytes is taken
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img")
_STATES = frozenset({"key", "status"})  # columns of img2dataset


class _Cells:
    """The pictures of a parquet file, read by row group. As they are read in order, one group in memory is enough."""

    def __init__(self, tree: FileSource, file: Any, column: str) -> None:
        self._tree = tree  # keeps a temporary file alive
        self._lock = threading.Lock()
        self._of_group = functools.lru_cache(maxsize=1)(lambda group: file.read_row_group(group, columns=[column]).column(0))

    def read(self, group: int, row: int) -> bytes:
        """Return the bytes of a cell; raises `ValueError` where it has none, or too many."""
        with self._lock:
            value = self._of_group(group)[row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        # a path instead of bytes is not followed
        if not isinstance(content, bytes):
            raise ValueError("the cell holds no bytes")
        if len(content) > MAX_MEMBER:
            raise ValueError(f"{TOO_LARGE}: {len(content)} bytes")
        return content


def find_parquet(tree: FileSource, named: Sequence[str] | None) -> Sequence[str]:
    return [name for name in (tree.names if named is None else named) if name.lower().endswith(".parquet")]


def read_parquet(source: Source) -> Reading:
    """Read the rows that have a picture and a caption."""
    return source.read_each(_read_file).without_single_side()


def _read_file(source: Source, name: str) -> Reading:
    file = parquet_file(source.tree, name)
    label = PurePosixPath(name).name
    images = [field.name for field in file.schema_arrow if "binary" in str(field.type)]
    if not images:
        raise GanT2IError(f"{label} has no column of pictures; its columns are: {', '.join(file.schema_arrow.names)}")
    image = min(images, key=lambda column: IMAGE_COLUMNS.index(column) if column in IMAGE_COLUMNS else len(IMAGE_COLUMNS))
    texts = [field.name for field in file.schema_arrow if "string" in str(field.type) and field.name not in images]
    wanted = source.settings.caption_column
    candidates = [column for column in texts if column == wanted or (wanted is None and column in CAPTION_COLUMNS)]
    # without a candidate the choice fails, and its message names the others
    rows = list(parquet_rows(file, name, [*candidates, *_STATES.intersection(texts)] if candidates else texts, source.bad))
    column = choose_column(label, [row for _, _, (_, row) in rows], wanted, tuple(_STATES))
    reading = Reading(notes=[f'captions from column "{column}", pictures from column "{image}" of the parquet files'])
    cells = _Cells(source.tree, file, image)
    described: dict[str, int] = {}  # key -> index of its record
    for group, index, (where, row) in rows:
        status, key = row.get("status"), row.get("key")
        if status not in (None, "success"):
            source.bad.add("missing image", where, f"img2dataset could not fetch the image: {status}")
            continue
        reading.images += 1
        cell = LazyFile(f"{image} of {where}", functools.partial(cells.read, group, index))
        if key in described and not _are_equal(cell, reading.records[described[key]].image):
            source.bad.add("duplicate key", where, f"the key {key!r} belongs to another picture before")
            continue
        captions = captions_of_value(row.get(column), "the row", where, source.bad)
        if key in described:
            reading.add_captions(described[key], captions)
            continue
        if key is not None and captions:
            described[key] = len(reading.records)
        reading.keep(Record(cell, captions, where, split_of_name(name)))
    return reading


def _are_equal(one: LazyFile, other: Path | LazyFile) -> bool:
    """Return True if both pictures can be read, and are the same bytes."""
    try:
        return isinstance(other, LazyFile) and one.read() == other.read()
    except Exception:  # as `LazyFile.read` may raise anything
        return False
