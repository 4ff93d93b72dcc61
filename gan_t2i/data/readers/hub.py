"""Data sets of the Hugging Face hub, hf:owner/name, and `datasets.Dataset` objects. `datasets` reads the tables and runs none of their code."""

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data.readers.base import SPLIT_NAMES, Reading, captions_of_value, choose_column
from gan_t2i.data.readers.tree import MAX_MEMBER
from gan_t2i.data.records import BadItems, LazyFile, Record
from gan_t2i.data.settings import DataSettings

PREFIX = "hf:"
_FETCHED = "hub"  # builder name that marks tables from there


def is_dataset(source: Any) -> bool:
    """Return True for an object of the `datasets` library, without importing it."""
    return not isinstance(source, (str, os.PathLike))


def load(source: Any) -> Any:
    """Fetch the `datasets.Dataset` or `DatasetDict` of a name, or return `source` if it is one."""
    try:
        import datasets
    except ImportError as error:
        raise GanT2IError(f"data {source} needs the library datasets: pip install 'gan-t2i[data]'") from error
    if is_dataset(source):
        if isinstance(source, (datasets.Dataset, datasets.DatasetDict)):
            return source
        raise UsageError(f"data must be a path, hf:owner/name, or a datasets.Dataset or DatasetDict, not {type(source).__name__}")
    name = str(source).removeprefix(PREFIX)
    # `datasets` takes any other name for a folder or a builder, which could read any path
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or Path(name).exists():
        raise UsageError(f"data {source} must be {PREFIX}owner/name, a data set of the hub")
    try:
        tables = datasets.load_dataset(name)
    # failures on the way to the hub have many classes
    except Exception as error:
        raise GanT2IError(f"data {PREFIX}{name} cannot be loaded: {' '.join(str(error).split())}") from error
    for _, table in _splits(tables):
        table.info.builder_name = _FETCHED
    return tables


def _splits(tables: Any) -> list[tuple[str, Any]]:
    """Return (split, table) pairs of a `DatasetDict`, or ('', table) of a `Dataset`."""
    return list(tables.items()) if isinstance(tables, dict) else [("", tables)]


def name_of(source: Any) -> str:
    """Return the name of a source in messages."""
    return f"a {type(source).__name__}" if is_dataset(source) else str(source)


def fingerprints(tables: Any) -> list[tuple[str, str]]:
    """Return (split, fingerprint) pairs that change with the tables, without reading them; the library has no public name for it."""
    return [(split, table._fingerprint) for split, table in _splits(tables)]


def read_hub(source: Any, settings: DataSettings, bad: BadItems) -> Reading:
    """Read the rows that have a picture and a caption; train is trained on, test and validation are held out."""
    reading = Reading()
    for split, table in _splits(load(source)):
        # a table that the user made, of pictures or a folder, may name files of this machine; a table from elsewhere may not
        local = is_dataset(source) and table.info.builder_name in (None, "imagefolder")
        reading.add(_read_table(table, split, local, settings, bad))
    return reading.without_single_side()


def _read_table(table: Any, split: str, local: bool, settings: DataSettings, bad: BadItems) -> Reading:
    import datasets

    label = split or "data"
    images = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise GanT2IError(f"{label} has no column of pictures; its columns are: {', '.join(table.column_names)}")
    column = images[0]
    # undecoded, so that they are decoded like the pictures of files
    pictures = table.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)
    # sounds and further pictures would be decoded for nothing
    texts = [name for name, feature in table.features.items() if "string" in str(feature) and name not in images]
    rows = list(table.select_columns(texts).with_format(None)) if texts else [{}] * len(table)
    caption = choose_column(label, rows, settings.caption_column, ())
    reading = Reading(notes=[f'captions from column "{caption}", pictures from column "{column}"'])
    for index, row in enumerate(rows):
        where = f"{label}:{index}"
        captions = captions_of_value(row.get(caption), "the row", where, bad)
        reading.images += 1
        cell = LazyFile(f"{column} of {where}", partial(_cell, pictures, index, column, local))
        reading.keep(Record(cell, captions, where, SPLIT_NAMES.get(split.lower())))
    return reading


def _cell(table: Any, index: int, column: str, local: bool) -> bytes:
    """Return the bytes of a picture: from the cell, from a file that `datasets` fetched, or with `local` from any file; never from a URL."""
    value = table[index][column] or {}
    content, path = value.get("bytes"), value.get("path")
    if content is None and path is not None and Path(path).is_file() and (local or _is_fetched(Path(path))):
        with open(path, "rb") as file:
            content = file.read(MAX_MEMBER + 1)
    if not isinstance(content, bytes) or len(content) > MAX_MEMBER:
        raise ValueError("the cell holds no picture, or one that is too large")
    return content


def _is_fetched(path: Path) -> bool:
    """Return True if a file is in the caches of the hub: a table may name any other file of this machine, or a URL."""
    import datasets
    from huggingface_hub import constants

    roots = (datasets.config.HF_DATASETS_CACHE, datasets.config.HF_CACHE_HOME, constants.HF_HUB_CACHE)
    return any(path.resolve().is_relative_to(Path(root).resolve()) for root in roots)
