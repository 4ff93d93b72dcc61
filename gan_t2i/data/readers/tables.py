"""Rows of tables: JSON lines, CSV and parquet. A broken row is a bad item, and reading goes on behind it."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.readers.base import MAX_TABLE, Row
from gan_t2i.data.readers.tree import FileSource, Rejected
from gan_t2i.data.records import BadItems

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def table_bytes(tree: FileSource, name: str) -> bytes:
    """A whole table; raises `GanT2IError` where it cannot be read or is too large."""
    try:
        content = tree.read(name, MAX_TABLE)
    except Rejected as error:
        raise GanT2IError(f"{name} {error.why}") from error
    if len(content) > MAX_TABLE:
        raise GanT2IError(f"{name} has more than {MAX_TABLE} bytes")
    return content.removeprefix(BYTE_ORDER_MARK)


class DuplicateKeyError(ValueError):
    """A key stands twice in an object of JSON, and which of its values is meant, nobody knows: readers differ."""


def json_value(content: bytes) -> Any:
    """JSON as a value; raises ValueError or RecursionError where it is none, and `DuplicateKeyError`."""
    # Bytes that are not UTF-8 become lone surrogates, so that one caption alone is refused for them.
    return json.loads(content.decode("utf-8", "surrogateescape"), object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateKeyError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return result


def jsonl_rows(tree: FileSource, name: str, bad: BadItems) -> Iterator[Row]:
    """The objects of a JSON-lines file with their places; lines that are none are counted in `bad`."""
    label = PurePosixPath(name).name
    for number, line in enumerate(table_bytes(tree, name).split(b"\n"), start=1):
        where = f"{label}:{number}"
        if not line.strip():
            continue
        try:
            row = json_value(line)
        except DuplicateKeyError as error:
            bad.add("duplicate key", where, str(error))
            continue
        # A thousand brackets exhaust the parser's stack.
        except (ValueError, RecursionError) as error:
            bad.add("malformed JSON", where, f"the line is not JSON: {' '.join(str(error).split())}")
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            bad.add("malformed JSON", where, f"the line must be a JSON object, not {type(row).__name__}")


def csv_rows(tree: FileSource, name: str, bad: BadItems, delimiter: str = ",") -> Iterator[Row]:
    """The rows of a CSV file with their places; lines that are none are counted in `bad`."""
    label = PurePosixPath(name).name
    text = table_bytes(tree, name).decode("utf-8", "surrogateescape")
    # newline="" leaves the line ends that a quoted value holds; str.splitlines would also cut at form feeds and the like.
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    _check_header(reader, label)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            bad.add("malformed CSV", f"{label}:{reader.reader.line_num}", f"the line is not CSV: {error}")
            continue
        if row is None:
            return
        where = f"{label}:{reader.line_num}"
        # DictReader keeps the values beyond the last column under None.
        if None in row:
            bad.add("malformed CSV", where, f"the line has more than the {len(row) - 1} values of the header")
        else:
            yield where, row


def _check_header(reader: "csv.DictReader[str]", label: str) -> None:
    """Raises `GanT2IError` where a column has its name twice."""
    try:
        names = list(reader.fieldnames or ())
    except csv.Error as error:
        raise GanT2IError(f"{label}:1: the line is not CSV: {error}") from error
    for name in names:
        if names.count(name) > 1:
            raise GanT2IError(f"{label} has the column {name!r} twice, and which of them is meant, nobody knows: rename one")


def json_object(tree: FileSource, name: str) -> dict[str, Any]:
    """A JSON file that holds one object; raises `GanT2IError`."""
    try:
        value = json_value(table_bytes(tree, name))
    except DuplicateKeyError as error:
        raise GanT2IError(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise GanT2IError(f"{name} is not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise GanT2IError(f"{name} must be a JSON object, not {type(value).__name__}")
    return value


def parquet_file(tree: FileSource, name: str) -> Any:
    """A `pyarrow.parquet.ParquetFile`; raises `GanT2IError` without pyarrow, or where it is none."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise GanT2IError(f"{name} is a parquet file, which needs pyarrow: pip install gan_t2i[data]") from error
    try:
        return parquet.ParquetFile(tree.local(name))
    except Rejected as error:
        raise GanT2IError(f"{name} {error.why}") from error
    # Of a damaged file pyarrow raises errors of its own and OSError.
    except Exception as error:
        raise GanT2IError(f"{name} is no readable parquet file: {' '.join(str(error).split())}") from error


def parquet_rows(file: Any, name: str, columns: list[str], bad: BadItems) -> Iterator[tuple[int, int, Row]]:
    """(row group, row in it, row) of a parquet file, with `columns` alone; a damaged row group is one bad item."""
    label = PurePosixPath(name).name
    number = 0
    for group in range(file.num_row_groups):
        try:
            rows = file.read_row_group(group, columns=columns).to_pylist() if columns else [{}] * file.metadata.row_group(group).num_rows
        except Exception as error:
            bad.add("damaged table", f"{label}:{number + 1}", f"row group {group} cannot be read: {' '.join(str(error).split())}")
            number += file.metadata.row_group(group).num_rows
            continue
        for index, row in enumerate(rows):
            number += 1
            yield group, index, (f"{label}:{number}", row)
