"""Readers of captioned pictures: which format a path holds, and its records.

A format is one entry of `READERS`; the first whose `find` recognises the path reads it. Broken items never stop a reader: they are
counted as `BadItem`, and refused (with on_bad="error") only when the user wants that.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from gan_t2i.data.records import HELDOUT, TRAIN, BadItem, BadItems, Record
from gan_t2i.errors import GanT2IError, UsageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
CAPTION_COLUMNS = ("text", "caption", "prompt", "title")
MAX_CAPTION = 2000  # characters
MAX_CAPTION_FILE = 1 << 20  # bytes; anything larger is no caption file
# The names that other tools give to the two sides.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("heldout", "held-out", "held_out", "test", "testing", "val", "valid", "validation", "eval"), HELDOUT),
}
Row = tuple[str, dict[str, Any]]  # (where, the row by column)


@dataclass
class Reading:
    """What a reader yields."""

    records: list[Record] = field(default_factory=list)
    bad: list[BadItem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # choices it made, for the user to see
    images: int = 0  # picture files found, with or without a caption
    captions: int = 0  # usable captions found, with or without a picture


@dataclass(frozen=True)
class Reader:
    """A format: its name in messages, how it is recognised, and how it is read."""

    name: str
    find: Callable[[Path], Path | None]  # path of the user -> the file or folder to read, None where it is another format
    read: Callable[[Path, BadItems, str | None], Reading]  # (what `find` gave, where faults go, caption column)


def read_records(path: Path, *, caption_column: str | None = None, on_bad: str = "skip") -> tuple[list[Record], list[BadItem]]:
    """The usable records of `path`, in an order that depends on its content alone, and what was left out. Errors as for `read`."""
    reading = read(path, caption_column=caption_column, on_bad=on_bad)
    return reading.records, reading.bad


def read(path: Path, *, caption_column: str | None = None, on_bad: str = "skip") -> Reading:
    """`read_records` with the notes on what the reader chose.

    Raises `UsageError` for a missing path or an unknown caption column, and `GanT2IError` where no pair is usable or, with
    on_bad="error", at the first bad item.
    """
    bad = BadItems(on_bad)
    path = Path(path)
    if not path.exists():
        raise UsageError(f"data {path} does not exist")
    for reader in READERS:
        found = reader.find(path)
        if found is not None:
            reading = reader.read(found, bad, caption_column)
            break
    else:
        raise UsageError(f"data {path} is neither a folder nor a .jsonl or .csv file")
    reading.bad = bad.items
    if not reading.records:
        raise GanT2IError(_nothing_usable(path, reading))
    return reading


def _nothing_usable(path: Path, reading: Reading) -> str:
    looked_for = ", ".join(reader.name for reader in READERS[:-1]) + f", or {READERS[-1].name}"
    message = f"no usable pair in {path}: found {reading.images} images, {reading.captions} captions; looked for {looked_for}"
    # Where a picture or a caption alone is missing, the counts say it all.
    telling = [item for item in reading.bad if item.kind not in ("image without caption", "caption without image")]
    return message + (f" (first fault: {telling[0].where}: {telling[0].why})" if telling else "")


# Captions


def clean_captions(texts: Iterable[Any], where: str, bad: BadItems) -> tuple[str, ...]:
    """The usable ones of `texts`: whitespace normalised, each once, in their order; the others go to `bad`."""
    captions: dict[str, None] = {}
    for text in texts:
        if not isinstance(text, str):
            bad.add("caption not text", where, f"the caption is {type(text).__name__}, not text")
            continue
        caption = " ".join(text.split())
        if not caption:
            bad.add("empty caption", where, "the caption is empty")
        elif not _is_utf8(caption):
            bad.add("caption not UTF-8", where, "the caption is not UTF-8")
        elif len(caption) > MAX_CAPTION:
            bad.add("caption too long", where, f"the caption has {len(caption)} characters, more than {MAX_CAPTION}")
        else:
            captions[caption] = None
    return tuple(captions)


def _is_utf8(text: str) -> bool:
    # Bytes that are not UTF-8 arrive as lone surrogates (surrogateescape), and so does a JSON escape such as "\ud800".
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# metadata.jsonl and metadata.csv: the layout of the Hugging Face imagefolder


def _metadata_in(path: Path, suffix: str) -> Path | None:
    if path.is_dir():
        path = path / f"metadata{suffix}"
    return path if path.is_file() and path.suffix.lower() == suffix else None


def _read_jsonl(path: Path, bad: BadItems, caption_column: str | None) -> Reading:
    return _read_metadata(path, _jsonl_rows(path, bad), bad, caption_column)


def _read_csv(path: Path, bad: BadItems, caption_column: str | None) -> Reading:
    return _read_metadata(path, _csv_rows(path, bad), bad, caption_column)


def _jsonl_rows(path: Path, bad: BadItems) -> Iterator[Row]:
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        where = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8", "surrogateescape"))
        # A thousand brackets exhaust the parser's stack.
        except (ValueError, RecursionError) as error:
            bad.add("malformed JSON", where, f"the line is not JSON: {' '.join(str(error).split())}")
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            bad.add("malformed JSON", where, f"the line must be a JSON object, not {type(row).__name__}")


def _csv_rows(path: Path, bad: BadItems) -> Iterator[Row]:
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    # newline="" leaves the line ends that a quoted value holds; str.splitlines would also cut at form feeds and the like.
    reader = csv.DictReader(io.StringIO(text, newline=""))
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            bad.add("malformed CSV", f"{path.name}:{reader.reader.line_num}", f"the line is not CSV: {error}")
            continue
        if row is None:
            return
        where = f"{path.name}:{reader.line_num}"
        # DictReader keeps the values beyond the last column under None.
        if None in row:
            bad.add("malformed CSV", where, f"the line has more than the {len(row) - 1} values of the header")
        else:
            yield where, row


def _read_metadata(path: Path, rows: Iterable[Row], bad: BadItems, caption_column: str | None) -> Reading:
    """Records of the rows whose keys are file_name (relative to the metadata's folder), a caption column, split and any others."""
    rows = list(rows)
    column = _choose_column(path.name, [row for _, row in rows], caption_column)
    reading = Reading(notes=[f'captions from column "{column}" of {path.name}'])
    root = path.parent.resolve()
    seen: set[str] = set()
    for where, row in rows:
        image = _image_of_row(root, row, where, bad, seen)
        if image is None:
            continue
        reading.images += 1
        split = row.get("split")
        if split not in (None, "") and (not isinstance(split, str) or split.strip().lower() not in SPLIT_NAMES):
            bad.add("unknown split", where, f"split must be one of: {', '.join(sorted(SPLIT_NAMES))}; not {split!r}")
            continue
        value = row.get(column)
        if value is None or value == []:
            bad.add("image without caption", where, f"{row['file_name']!r} has no caption")
            continue
        captions = clean_captions(value if isinstance(value, list) else [value], where, bad)
        reading.captions += len(captions)
        if captions:
            extra = {key: item for key, item in row.items() if key not in ("file_name", "split", column)}
            side = SPLIT_NAMES[split.strip().lower()] if split else None
            reading.records.append(Record(image, captions, where, side, extra))
    return reading


def _choose_column(name: str, rows: Sequence[Mapping[str, Any]], wanted: str | None) -> str:
    """The caption column: the wanted one, or the first of `CAPTION_COLUMNS` that holds text."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in ("file_name", "split"))
    with_text = [key for key in keys if any(_is_text(row.get(key)) for row in rows)]
    allowed = ", ".join(with_text) or "(no column holds text)"
    if wanted is not None:
        if wanted not in keys:
            raise UsageError(f"caption_column must be one of: {allowed}; {name} has no column {wanted}")
        return wanted
    for candidates in (with_text, keys):
        for column in CAPTION_COLUMNS:
            if column in candidates:
                return column
    if with_text:
        raise UsageError(f"caption_column must be one of: {allowed}; {name} has none of {', '.join(CAPTION_COLUMNS)}")
    return CAPTION_COLUMNS[0]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value))


def _image_of_row(root: Path, row: Mapping[str, Any], where: str, bad: BadItems, seen: set[str]) -> Path | None:
    """The picture of a metadata row, inside `root` and not seen before; None where it is a bad item."""
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        bad.add("row without file_name", where, "the row has no file_name")
        return None
    try:
        image = inside(root, name)
        is_file = image is not None and image.is_file()
    except (OSError, ValueError) as error:  # a name that no file can have: too long, with a NUL, not encodable
        bad.add("missing image", where, f"{name!r} cannot be opened: {error}")
        return None
    if image is None:
        bad.add("path outside the folder", where, f"{name!r} leads out of the folder")
        return None
    key = os.path.normpath(name)
    if key in seen:
        bad.add("duplicate file_name", where, f"{name!r} has been described before")
        return None
    seen.add(key)
    if not is_file:
        bad.add("missing image", where, f"{name!r} does not exist")
        return None
    return image


def inside(root: Path, name: str) -> Path | None:
    """The file `name` below `root` (which must be resolved), or None where it is absolute, a URL, has ``..``, or leads out through a link."""
    # The Windows reading of a name knows both slashes, drives and shares.
    parts = PureWindowsPath(name)
    if "://" in name or parts.drive or parts.root or ".." in parts.parts:
        return None
    path = root / name
    # Path.resolve raises on a loop of links, realpath does not.
    return path if Path(os.path.realpath(path)).is_relative_to(root) else None


# Pictures with same-stem .txt


def _read_pairs(folder: Path, bad: BadItems, caption_column: str | None) -> Reading:
    """Records of the pictures below `folder` that have a .txt of the same stem beside them, one caption a line."""
    if caption_column is not None:
        raise UsageError(f"caption_column {caption_column} needs a metadata.jsonl or metadata.csv, and {folder} has none")
    reading = Reading(notes=["captions from .txt files beside the images"])
    root = folder.resolve()
    files = sorted(files_below(root))
    texts = {name[: -len(".txt")]: name for name in files if name.lower().endswith(".txt")}
    unused = dict(texts)
    captions_of: dict[str, tuple[str, ...]] = {}  # read once where a.png and a.jpg share a.txt
    for name in files:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in IMAGE_SUFFIXES:
            continue
        reading.images += 1
        unused.pop(stem, None)
        if stem not in texts:
            bad.add("image without caption", _shown(name), "the image has no .txt of the same stem")
            continue
        if not _is_ours(root, name, "missing image", bad):
            continue
        if stem not in captions_of:
            captions_of[stem] = _captions_in(root, texts[stem], bad)
            reading.captions += len(captions_of[stem])
        if captions_of[stem]:
            reading.records.append(Record(root / name, captions_of[stem], _shown(texts[stem])))
    for name in unused.values():
        reading.captions += 1
        bad.add("caption without image", _shown(name), "the caption has no image of the same stem")
    return reading


def files_below(root: Path) -> Iterator[str]:
    """Relative names (with /) of the files below `root`, without hidden ones, without following links to folders, and without the grids
    of a training run that stands among the pictures."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_run(Path(folder, name))]
        prefix = Path(folder).relative_to(root)
        yield from ((prefix / name).as_posix() for name in names if not name.startswith("."))


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "grids").is_dir()


def _is_ours(root: Path, name: str, kind: str, bad: BadItems) -> bool:
    """Whether `name` is a regular file that no link leads out of `root`; if not, it goes to `bad`."""
    path = inside(root, name)
    if path is None:
        bad.add("path outside the folder", _shown(name), "the link leads out of the folder")
    elif not path.is_file():
        bad.add(kind, _shown(name), "the file is a broken link or no regular file")
    else:
        return True
    return False


def _captions_in(root: Path, name: str, bad: BadItems) -> tuple[str, ...]:
    """The captions in the text file `name`, one a non-empty line; () where it is a bad item."""
    where = _shown(name)
    if not _is_ours(root, name, "unreadable caption", bad):
        return ()
    try:
        with open(root / name, "rb") as file:
            content = file.read(MAX_CAPTION_FILE + 1)
    except OSError as error:
        bad.add("unreadable caption", where, f"the caption cannot be read: {error.strerror}")
        return ()
    if len(content) > MAX_CAPTION_FILE:
        bad.add("caption too long", where, f"the file has more than {MAX_CAPTION_FILE} bytes")
        return ()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        bad.add("caption not UTF-8", where, "the caption is not UTF-8")
        return ()
    lines = [line for line in text.splitlines() if line.strip()]
    return clean_captions(lines or [""], where, bad)


def _shown(name: str) -> str:
    """A file name as text that any terminal takes: bytes of it that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


READERS: tuple[Reader, ...] = (
    Reader("metadata.jsonl", lambda path: _metadata_in(path, ".jsonl"), _read_jsonl),
    Reader("metadata.csv", lambda path: _metadata_in(path, ".csv"), _read_csv),
    Reader("images with same-stem .txt", lambda path: path if path.is_dir() else None, _read_pairs),
)
