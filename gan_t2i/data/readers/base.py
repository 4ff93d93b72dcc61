"""Shared parts of all readers: their result, captions, caption columns, and pictures that a table names."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data import svg
from gan_t2i.data.decode import IMAGE_FORMATS
from gan_t2i.data.readers.tree import FileSource, FolderTree, Rejected
from gan_t2i.data.records import HELDOUT, TRAIN, BadItem, BadItems, Record
from gan_t2i.data.settings import DataSettings

IMAGE_SUFFIXES = (*(suffix for suffixes in IMAGE_FORMATS.values() for suffix in suffixes), svg.SUFFIX)
# pictures as well, which Pillow cannot read, or not safely
UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".jxl", ".psd", ".xcf", ".eps", ".ico", ".icns", ".tga", ".dds", ".qoi", ".pcx", ".dib", ".exr", ".hdr"),
    *(".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
UNREAD = "image of a format that is not read"
NOT_USED = "not used in the format"
CAPTION_COLUMNS = ("text", "caption", "prompt", "title")
FILE_COLUMNS = ("file_name", "image", "file", "filename", "path")  # of the pictures' names; the first that a table has
MAX_CAPTION_FILE = 1 << 20  # bytes; a larger file does not hold captions
MAX_TABLE = 1 << 31  # bytes of a table of captions
# names that other tools give to the two sides
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("heldout", "held-out", "held_out", "test", "testing", "val", "valid", "validation", "eval"), HELDOUT),
}
Row = tuple[str, dict[str, Any]]  # (where, the row by column)


@dataclass
class Reading:
    """Result of a reader."""

    records: list[Record] = field(default_factory=list)
    bad: list[BadItem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # its choices, for the user
    images: int = 0  # picture files found, with or without a caption
    captions: int = 0  # usable captions found, with or without a picture
    unused: Counter[str] = field(default_factory=Counter)  # files that are no part of the format, by suffix, and items not asked for, by kind
    first_unused: dict[str, str] = field(default_factory=dict)  # suffix or kind -> name of the first

    def add(self, other: "Reading") -> None:
        """Append another reading."""
        self.records += other.records
        self.notes += [note for note in other.notes if note not in self.notes]
        self.images += other.images
        self.captions += other.captions
        self.unused += other.unused
        self.first_unused = other.first_unused | self.first_unused

    def keep(self, record: Record) -> None:
        """Count the captions of `record`, and append it if it has any."""
        self.captions += len(record.captions)
        if record.captions:
            self.records.append(record)

    def add_captions(self, index: int, captions: Sequence[str]) -> None:
        """Give a record further captions."""
        self.captions += len(captions)
        record = self.records[index]
        self.records[index] = replace(record, captions=tuple(dict.fromkeys((*record.captions, *captions))))

    def pass_over(self, name: str, kind: str | None = None) -> None:
        """Count a file that is no part of the format, or with `kind` an item that was not asked for."""
        kind = kind or printable(PurePosixPath(name).suffix.lower()) or "without a suffix"
        self.unused[kind] += 1
        self.first_unused.setdefault(kind, printable(name))

    def note_unused(self, form: str) -> None:
        """Add the note on what the format `form` has no use for."""
        if self.unused:
            counts = ", ".join(f"{suffix} {count:,} ({self.first_unused[suffix]})" for suffix, count in self.unused.most_common())
            self.notes.append(f"{NOT_USED} {form}: {counts}")

    def without_single_side(self) -> Self:
        """Remove the sides of the records where all have the same one: a share is held out then, as of data without a split."""
        if len({record.split for record in self.records}) == 1:
            self.records = [replace(record, split=None) for record in self.records]
        return self


@dataclass(frozen=True)
class Source:
    """Input of a reader."""

    tree: FileSource
    entries: Sequence[str]  # files in the tree to read, from `find`
    settings: DataSettings
    bad: BadItems
    is_whole: bool = False  # a folder or a zip, not files that the user named

    def read_each(self, read_one: Callable[["Source", str], Reading]) -> Reading:
        """Read all entries; one that cannot be read spoils no other."""
        reading = Reading()
        for name in self.entries:
            try:
                reading.add(read_one(self, name))
            except UsageError:
                raise
            except GanT2IError as error:
                if len(self.entries) == 1:
                    raise
                self.bad.add("unreadable table", printable(name), str(error))
        return reading

    def pictures(self, folder: str = "") -> FileSource:
        """Return the user's image root, else `folder` in the source if it has files, else the source."""
        if self.settings.image_root is not None:
            return FolderTree(Path(self.settings.image_root), self.tree.asked)  # it may lie in the source
        return self.tree.below(folder) if any(name.startswith(f"{folder}/") for name in self.tree.names) else self.tree


@dataclass(frozen=True)
class Reader:
    """A format: its name, its files, how to recognise it, and how to read it."""

    name: str  # in settings
    looks_for: str  # its files, in messages
    # (tree, the files that the user named or None for all) -> files to read, empty for another format
    find: Callable[[FileSource, Sequence[str] | None], Sequence[str]]
    read: Callable[[Source], Reading]
    no_columns: str | None = None  # its captions, in messages, where they are in no column that the user could choose
    names_pictures: bool = False  # in files that may lie apart from the pictures


def clean_captions(texts: Iterable[Any], where: str, bad: BadItems) -> tuple[str, ...]:
    """Return the usable ones of `texts`, with normalised whitespace, each once, in their order; the others go to `bad`."""
    captions: dict[str, None] = {}
    for text in texts:
        if not isinstance(text, str):
            bad.add("caption not text", where, f"the caption is {type(text).__name__}, not text")
            continue
        caption = " ".join(text.split())
        if fault := _fault_of(caption):
            bad.add(fault[0], where, fault[1])
        else:
            captions[caption] = None
    return tuple(captions)


def _fault_of(caption: str) -> tuple[str, str] | None:
    """Return (kind, why) for a caption that cannot be used. The invisible characters in joined emoji are not a fault."""
    if not caption:
        return "empty caption", "the caption is empty"
    # bytes that are not UTF-8 arrive as lone surrogates (surrogateescape), and so does a JSON escape such as "\ud800"
    if re.search("[\ud800-\udfff]", caption):
        return "caption not UTF-8", "the caption is not UTF-8"
    if not caption.isprintable():
        if not any(character.isprintable() and character != " " for character in caption):
            return "empty caption", "the caption has no visible characters"
        if any(unicodedata.category(character) == "Cc" for character in caption):
            return "control characters in caption", "the caption has control characters, which a terminal would obey"
    return None


def decoded(content: bytes) -> str:
    """Return a text in UTF-8, UTF-16 or UTF-32, without its byte order mark. Bytes that are neither become lone surrogates, so that only the
    caption with them is rejected."""
    try:
        return content.decode(json.detect_encoding(content), "surrogateescape")
    except UnicodeDecodeError:
        return content.decode("utf-8", "surrogateescape")


def captions_of_text(content: bytes, where: str, settings: DataSettings, bad: BadItems) -> tuple[str, ...]:
    """Return the captions in the bytes of a text file, one per non-empty line; () for a bad item."""
    if len(content) > MAX_CAPTION_FILE:
        bad.add("caption too long", where, f"the file has more than {MAX_CAPTION_FILE} bytes")
        return ()
    # str.splitlines would also split at form feeds and the like
    lines = [line for line in re.split(r"[\r\n]+", decoded(content)) if line.strip()] or [""]
    return clean_captions(lines[:1] if settings.caption_lines == "first" else lines, where, bad)


def captions_of_value(value: Any, what: str, where: str, bad: BadItems) -> tuple[str, ...]:
    """Return the captions in a cell, which is a text or a list of texts; `what` names the picture in messages."""
    if value is None or value == []:
        bad.add("image without caption", where, f"{what} has no caption")
        return ()
    return clean_captions(value if isinstance(value, list) else [value], where, bad)


def choose_column(name: str, rows: Sequence[Mapping[str, Any]], wanted: str | None, aside: Sequence[str] = (FILE_COLUMNS[0], "split")) -> str:
    """Return the caption column: the wanted one, or the first of `CAPTION_COLUMNS` that holds text; those in `aside` do not count."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in aside)
    with_text = [key for key in keys if any(is_text(row.get(key)) for row in rows)]
    if wanted is not None:
        if wanted not in keys:
            raise _no_caption_column(name, wanted, with_text)
        return wanted
    for candidates in (with_text, keys):
        for column in CAPTION_COLUMNS:
            if column in candidates:
                return column
    if with_text:
        raise _no_caption_column(name, either(CAPTION_COLUMNS), with_text)
    return CAPTION_COLUMNS[0]


def _no_caption_column(name: str, missing: str, with_text: Sequence[str]) -> UsageError:
    if not with_text:
        return UsageError(f"{name} has no column {missing}, and none that holds text")
    columns = " ".join(either(with_text).split())  # a name may contain line breaks
    return UsageError(f"{name} has no column {missing}: name the caption column with --caption-column {columns} (caption_column in Python)")


def either(names: Sequence[str]) -> str:
    """Return the names as "a, b or c"."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def is_text(value: Any) -> bool:
    """Return True if a cell is a text or a list of texts."""
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value))


class Gallery:
    """The pictures that the rows of a table name. Several rows of a picture give its captions together."""

    def __init__(self, pictures: FileSource, reading: Reading, bad: BadItems, key: str = FILE_COLUMNS[0]) -> None:
        self._pictures, self._reading, self._bad, self._key = pictures, reading, bad, key
        self._places: dict[str, int | None] = {}  # name in the source -> index of its record, None as long as it has none

    def find(self, row: Mapping[str, Any], where: str) -> str | None:
        """Return the name of the picture that a row names, inside the source; None for a bad item."""
        name = row.get(self._key)
        if name is not None and not isinstance(name, str):
            self._bad.add(f"{self._key} not text", where, f"the {self._key} is {type(name).__name__}, not text")
            return None
        if name is None or not name.strip():
            self._bad.add(f"row without {self._key}", where, f"the row has no {self._key}")
            return None
        try:
            found = self._pictures.find(name)
        except Rejected as error:
            self._bad.add(error.kind, where, f"{name!r} {error.why}")
            return None
        if found not in self._places:
            self._reading.images += 1
            self._places[found] = None
        return found

    def keep(self, name: str, captions: tuple[str, ...], where: str, split: str | None = None, extra: Mapping[str, Any] | None = None) -> None:
        """Give the picture `name`, which `find` has returned, its captions, or further ones."""
        place = self._places[name]
        if place is None:
            try:
                image = self._pictures.picture(name)
            except Rejected as error:
                self._bad.add(error.kind, where, f"{name!r} {error.why}")
                return
            self._places[name] = len(self._reading.records) if captions else None
            self._reading.keep(Record(image, captions, where, split, extra or {}))
            return
        record = self._reading.records[place]
        if split is not None and split != (record.split or split):
            self._bad.add("contradicting split", where, f"{name!r} is on the other side by {record.where}")
            return
        self._reading.records[place] = replace(record, split=record.split or split)
        self._reading.add_captions(place, captions)


def split_of_name(name: str) -> str | None:
    """Return the side of the split in the name of a shard or a folder, such as train-00000.parquet or val/0001.tar."""
    for part in reversed(name.lower().split("/")):
        for word in (part, part.split(".")[0], part.split(".")[0].split("-")[0]):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None


def printable(name: str) -> str:
    """Return a file name that is safe to print: bytes that are not UTF-8 and invisible characters are escaped."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
