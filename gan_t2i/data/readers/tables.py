"""Rows of tables: JSON lines, CSV and parquet. A broken row is a bad item, and reading continues after it."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.readers.base import MAX_TABLE, Row, decoded
from gan_t2i.data.readers.tree import FileSource, Rejected
from gan_t2i.data.records import BadItems

MALFORMED = "malformed JSON"


def table_text(tree: FileSource, name: str) -> str:
    """Return the text of a table; raises `GanT2IError` where it cannot be read or is too large."""
    try:
        content = tree.read(name, MAX_TABLE)
    except Rejected as error:
        raise GanT2IError(f"{name} {error.why}") from error
    if len(content) > MAX_TABLE:
        raise GanT2IError(f"{name} has more than {MAX_TABLE} bytes")
    return decoded(content)


def json_value(text: str, what: str) -> Any:
    """Parse JSON, which messages name `what`; raises `Rejected` where it is malformed or an object has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    # a thousand brackets exhaust the parser's stack
    except (ValueError, RecursionError) as error:
        raise Rejected(MALFORMED, f"{what} is not JSON: {' '.join(str(error).split())}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # the value of a key that occurs twice is ambiguous: parsers differ
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise Rejected("duplicate key", f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice in an object")
    return result


def jsonl_rows(tree: FileSource, name: str, bad: BadItems) -> Iterator[Row]:
    """Yield the objects of a JSON-lines file with their locations; malformed lines go to `bad`."""
    label = PurePosixPath(name).name
    for number, line in enumerate(re.split(r"\r\n?|\n", table_text(tree, name)), start=1):
        where = f"{label}:{number}"
        if not line.strip():
            continue
        try:
            row = json_value(line, "the line")
        except Rejected as error:
            bad.add(error.kind, where, error.why)
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            bad.add(MALFORMED, where, f"the line must be a JSON object, not {type(row).__name__}")


def csv_rows(tree: FileSource, name: str, bad: BadItems) -> Iterator[Row]:
    """Yield the rows of a CSV file, which commas, tabs or semicolons separate, with their locations; malformed lines go to `bad`."""
    label = PurePosixPath(name).name
    text = table_text(tree, name)
    header = text.partition("\n")[0]
    delimiter = "\t" if "\t" in header else max(",;", key=header.count)  # Excel writes all three
    # newline="" keeps line ends within quoted values; str.splitlines would also split at form feeds and the like
    stream = io.StringIO(text, newline="")
    reader = csv.DictReader(stream, delimiter=delimiter, skipinitialspace=True)
    try:
        names = list(reader.fieldnames or ())
    except csv.Error as error:
        raise GanT2IError(f"{label}:1: the line is not CSV: {error}") from error
    for column in names:
        if names.count(column) > 1:
            raise GanT2IError(f"{label} has the column {column!r} twice: rename one of them")
    while True:
        start, before = stream.tell(), reader.line_num
        try:
            row = next(reader, None)
        except csv.Error as error:
            bad.add("malformed CSV", f"{label}:{reader.reader.line_num}", f"the line is not CSV: {error}")
            continue
        if row is None:
            return
        where = f"{label}:{reader.line_num}"
        if (swallowed := reader.line_num - before - 1) > 0 and stream.tell() == len(text) and text.count('"', start) % 2:
            why = f"a quote in it is never closed, so the {swallowed:,} lines after it are no rows of their own"
            bad.add("malformed CSV", f"{label}:{before + 1}", why)
            return
        # DictReader puts values beyond the last column under None
        if None in row:
            bad.add("malformed CSV", where, f"the line has more than the {len(row) - 1} values of the header")
        else:
            yield where, row


def json_object(tree: FileSource, name: str) -> dict[str, Any]:
    """Return the object in a JSON file; raises `GanT2IError`."""
    try:
        value = json_value(table_text(tree, name), name)
    except Rejected as error:
        raise GanT2IError(error.why if error.kind == MALFORMED else f"{name}: {error.why}") from error
    if not isinstance(value, dict):
        raise GanT2IError(f"{name} must be a JSON object, not {type(value).__name__}")
    return value


def parquet_file(tree: FileSource, name: str) -> Any:
    """Open a `pyarrow.parquet.ParquetFile`; raises `GanT2IError` without pyarrow, or for another kind of file."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise GanT2IError(f"{name} is a parquet file, which needs pyarrow: pip install 'gan-t2i[data]'") from error
    try:
        return parquet.ParquetFile(tree.local(name))
    except Rejected as error:
        raise GanT2IError(f"{name} {error.why}") from error
    # for a damaged file pyarrow raises errors of its own and OSError
    except Exception as error:
        raise GanT2IError(f"{name} is not a readable parquet file: {' '.join(str(error).split())}") from error


def parquet_rows(file: Any, name: str, columns: list[str], bad: BadItems) -> Iterator[tuple[int, int, Row]]:
    """Yield (row group, index in it, row) of a parquet file with `columns` alone; a damaged row group is a single bad item."""
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
