"""What all readers share: their result, captions, caption columns, and pictures that a table names."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gan_t2i.core.errors import UsageError
from gan_t2i.data.readers.tree import FileSource, Rejected
from gan_t2i.data.records import HELDOUT, TRAIN, BadItem, BadItems, LazyFile, Record
from gan_t2i.data.settings import DataSettings

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
CAPTION_COLUMNS = ("text", "caption", "prompt", "title")
MAX_CAPTION = 2000  # characters
MAX_CAPTION_FILE = 1 << 20  # bytes; anything larger is no caption file
MAX_TABLE = 1 << 31  # bytes of a table of captions
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

    def add(self, other: "Reading") -> None:
        self.records += other.records
        self.notes += [note for note in other.notes if note not in self.notes]
        self.images += other.images
        self.captions += other.captions


@dataclass(frozen=True)
class Source:
    """What a reader works on."""

    tree: FileSource
    entries: Sequence[str]  # the files in the tree to read, which `find` gave
    settings: DataSettings
    bad: BadItems


@dataclass(frozen=True)
class Reader:
    """A format: how it is called, what it looks for, how it is recognised, and how it is read."""

    name: str  # in settings
    looks_for: str  # in messages
    # (tree, the files that the user named or None for the whole) -> what to read, empty where it is another format
    find: Callable[[FileSource, Sequence[str] | None], Sequence[str]]
    read: Callable[[Source], Reading]


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
        elif not caption.isprintable() and (fault := _fault_of_signs(caption)):
            bad.add(fault[0], where, fault[1])
        elif len(caption) > MAX_CAPTION:
            bad.add("caption too long", where, f"the caption has {len(caption)} characters, more than {MAX_CAPTION}")
        else:
            captions[caption] = None
    return tuple(captions)


def _fault_of_signs(caption: str) -> tuple[str, str] | None:
    """(kind, why) of a caption whose signs are not all to be seen, where that is a fault: joined emoji and the like are none."""
    if not any(sign.isprintable() and sign != " " for sign in caption):
        return "empty caption", "the caption has nothing that can be seen"
    if any(unicodedata.category(sign) == "Cc" for sign in caption):
        return "control characters in caption", "the caption has control characters, which a terminal would obey"
    return None


def _is_utf8(text: str) -> bool:
    # Bytes that are not UTF-8 arrive as lone surrogates (surrogateescape), and so does a JSON escape such as "\ud800".
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def captions_of_text(content: bytes, where: str, settings: DataSettings, bad: BadItems) -> tuple[str, ...]:
    """The captions in the bytes of a text file, one a non-empty line; () where it is a bad item."""
    if len(content) > MAX_CAPTION_FILE:
        bad.add("caption too long", where, f"the file has more than {MAX_CAPTION_FILE} bytes")
        return ()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        bad.add("caption not UTF-8", where, "the caption is not UTF-8")
        return ()
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return clean_captions(lines[:1] if settings.caption_lines == "first" else lines, where, bad)


def captions_of_value(value: Any, what: str, where: str, bad: BadItems) -> tuple[str, ...]:
    """The captions in a cell, which is a text or a list of texts; `what` names the picture in messages."""
    if value is None or value == []:
        bad.add("image without caption", where, f"{what} has no caption")
        return ()
    return clean_captions(value if isinstance(value, list) else [value], where, bad)


def choose_column(name: str, rows: Sequence[Mapping[str, Any]], wanted: str | None, aside: Sequence[str] = ("file_name", "split")) -> str:
    """The caption column: the wanted one, or the first of `CAPTION_COLUMNS` that holds text; `aside` are no candidates."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in aside)
    with_text = [key for key in keys if any(is_text(row.get(key)) for row in rows)]
    allowed = " ".join(", ".join(with_text).split()) or "(no column holds text)"  # a name may have lines
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


def is_text(value: Any) -> bool:
    """Whether a cell is a text or a list of texts."""
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value))


def refuse_column(settings: DataSettings, form: str) -> None:
    """Raises `UsageError` where a caption column is wanted of a format that has none."""
    if settings.caption_column is not None:
        raise UsageError(f"caption_column {settings.caption_column} is for tables and metadata, and {form} have no columns")


# Pictures and splits


def picture_of_row(tree: FileSource, row: Mapping[str, Any], key: str, where: str, bad: BadItems, seen: set[str]) -> Path | LazyFile | None:
    """The picture that a row names under `key`, inside `tree` and not seen before; None where it is a bad item."""
    name = row.get(key)
    if not isinstance(name, str) or not name.strip():
        bad.add(f"row without {key}", where, f"the row has no {key}")
        return None
    try:
        image = tree.picture(name)
    except Rejected as error:
        bad.add(error.kind, where, f"{name!r} {error.why}")
        return None
    path = os.path.normpath(name)
    if path in seen:
        bad.add(f"duplicate {key}", where, f"{name!r} has been described before")
        return None
    seen.add(path)
    return image


def split_of_name(name: str) -> str | None:
    """The side that a shard's or a folder's name tells: train-00000.parquet, val/0001.tar."""
    for part in reversed(name.lower().split("/")):
        for word in (part, part.split(".")[0], part.split(".")[0].split("-")[0]):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None


def with_two_sides(reading: Reading) -> Reading:
    """Forgets the sides that shards or folders told where they told only one: then a share is held out as of any other data."""
    if len({record.split for record in reading.records}) == 1:
        reading.records = [replace(record, split=None) for record in reading.records]
    return reading


def printable(name: str) -> str:
    """A file name as text that any terminal takes: bytes of it that are not UTF-8, and signs that are not to be seen, are escaped."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
