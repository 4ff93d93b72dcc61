"""Tars of img2dataset and WebDataset: members with the same key form a sample: 0001.jpg, 0001.txt, 0001.json.

The key is the name up to its first dot, or up to its last where only that parts a known suffix: v1.5.jpg and v1.5.txt.

No member is unpacked: the standard library's tarfile gives the offset of each, and pictures are read from there when they are decoded.
"""

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from gan_t2i.core.errors import UsageError
from gan_t2i.data.readers import base
from gan_t2i.data.readers.base import Reading, Source, printable
from gan_t2i.data.readers.pairs import CAPTION_SUFFIXES
from gan_t2i.data.readers.tables import json_value
from gan_t2i.data.readers.tree import MAX_MEMBER, MISSING, OUTSIDE, TOO_LARGE, FileSource, Rejected, is_unsafe, plain
from gan_t2i.data.records import BadItems, LazyFile, Record

KNOWN = frozenset((*base.IMAGE_SUFFIXES, *base.UNREAD_SUFFIXES, *CAPTION_SUFFIXES, ".json"))


@dataclass
class _Sample:
    """The members with the same key, and their location."""

    where: str
    image: LazyFile | None = None
    text: bytes | None = None
    row: dict[str, Any] | None = None
    split: str | None = None
    kinds: set[str] = field(default_factory=set)
    usable: bool = True
    unread: bool = False  # it has a picture of a format that is not read


def find_tars(tree: FileSource, named: Sequence[str] | None) -> Sequence[str]:
    return [name for name in (tree.names if named is None else named) if name.lower().endswith(".tar")]


def read_tars(source: Source) -> Reading:
    """Read the samples that have a picture and a caption, which is the .txt, the .caption or a key of the .json."""
    reading = Reading()
    samples = [sample for name in source.entries for sample in _samples(source, name, reading)]
    reading.add(_records(source, samples, _caption_key(source, samples)))
    return reading.without_single_side()


def caption_key(source: Source) -> str | None:
    """Return the source of the captions of all shards, from the first shard with a sample: a key of the .json, or None for the text files."""
    # the first shard with a sample, usable or not, is the last one read: together they may be large
    silent = replace(source, bad=BadItems())
    samples = next((samples for name in source.entries if (samples := _samples(silent, name, Reading()))), [])
    return _caption_key(source, samples)


def read_shard(source: Source, name: str, key: str | None) -> Reading:
    """Read the tar `name` alone, as `read_tars` does, with the captions of `key`; the split of its records is that of its name."""
    reading = Reading()
    reading.add(_records(source, _samples(source, name, reading), key))
    return reading


def _caption_key(source: Source, samples: Sequence[_Sample]) -> str | None:
    wanted = source.settings.caption_column
    if wanted is None and any(sample.text is not None for sample in samples):
        return None
    return base.choose_column("the samples' .json", [sample.row for sample in samples if sample.row], wanted)


def _records(source: Source, samples: Sequence[_Sample], key: str | None) -> Reading:
    note = "captions from the texts in the tars" if key is None else f'captions from key "{key}" of the .json in the tars'
    reading = Reading(notes=[note])
    for sample in samples:
        captions: tuple[str, ...] = ()
        if not sample.usable:
            continue
        if key is None and sample.text is not None:
            captions = base.captions_of_text(sample.text, sample.where, source.settings, source.bad)
        elif key is not None and sample.row is not None:
            captions = base.captions_of_value(sample.row.get(key), "the sample", sample.where, source.bad)
        elif sample.image is not None:
            source.bad.add("image without caption", sample.where, "the sample has no caption")
        caption_kind = ".json" if key is not None else next((kind for kind in CAPTION_SUFFIXES if kind in sample.kinds), None)
        for kind in sorted(sample.kinds - {"image", caption_kind}):
            reading.pass_over(sample.where + kind)
        reading.images += sample.image is not None
        reading.captions += len(captions)
        if captions and sample.image is None and not sample.unread:
            source.bad.add("caption without image", sample.where, "the sample has no image")
        elif captions and sample.image is not None:
            reading.records.append(Record(sample.image, captions, sample.where, sample.split))
    return reading


def _samples(source: Source, name: str, reading: Reading) -> list[_Sample]:
    """Return the samples of a tar, in the order of their first members. A sample with two members of a kind is unusable. `reading` counts the
    members that belong to none."""
    tree, bad, wanted = source.tree, source.bad, source.settings.caption_column
    try:
        path = tree.local(name)
    except Rejected as error:
        bad.add("missing shard" if error.kind == MISSING else error.kind, printable(name), f"the tar {error.why}")
        return []
    samples: dict[str, _Sample] = {}
    try:
        with open(path, "rb") as file:
            for member in _members(file, path.stat().st_size, printable(name), bad):
                key, suffix = _key_and_suffix(member.name)
                if suffix not in KNOWN:
                    reading.pass_over(member.name)
                    continue
                sample = samples.setdefault(key, _Sample(f"{printable(name)}/{printable(key)}", split=base.split_of_name(name)))
                if not _is_taken(sample, member, suffix, bad):
                    continue
                file.seek(member.offset_data)  # tarfile seeks by itself
                if suffix in base.IMAGE_SUFFIXES:
                    sample.image = LazyFile(printable(member.name), partial(read_slice, tree, path, member.offset_data, member.size))
                elif suffix == ".json":
                    sample.row = _row(file.read(member.size), wanted, sample.where, bad)
                elif suffix == CAPTION_SUFFIXES[0] or sample.text is None:
                    sample.text = file.read(member.size)
    except OSError as error:
        bad.add("unreadable archive", printable(name), f"the tar cannot be read: {error.strerror}")
    for key in [key for key, sample in samples.items() if _is_part(key, sample, samples)]:
        sample = samples.pop(key)
        reading.pass_over(sample.image.name if sample.image else sample.where + min(sample.kinds))
    if wanted is None:
        for sample in samples.values():
            sample.row = None if sample.text is not None else sample.row  # not needed, and many of them take memory
    return list(samples.values())


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Return the key of a member, and its suffix in lower case."""
    folder, slash, rest = plain(name).rpartition("/")
    stem, dot, extension = rest.partition(".")
    if dot + extension.lower() not in KNOWN:
        stem, extension = os.path.splitext(rest)
        dot = ""
    return folder + slash + stem, dot + extension.lower()


def _is_part(key: str, sample: _Sample, samples: Mapping[str, _Sample]) -> bool:
    """Return True for one member that belongs to another sample, such as 0001.mask.png to 0001."""
    folder, slash, rest = key.rpartition("/")
    return sample.usable and len(sample.kinds) == 1 and "." in rest and folder + slash + rest.partition(".")[0] in samples


def _is_taken(sample: _Sample, member: tarfile.TarInfo, suffix: str, bad: BadItems) -> bool:
    """Return True for a member to read: a picture or a caption, the first of its kind in the sample, and below the cap."""
    if not sample.usable:
        return False
    if suffix in base.UNREAD_SUFFIXES:
        bad.add(base.UNREAD, sample.where + suffix, f"{suffix} is not read: convert it to PNG")
        sample.unread = True
        return False
    kind = "image" if suffix in base.IMAGE_SUFFIXES else suffix
    if kind in sample.kinds:
        bad.add("duplicate key", sample.where, "the tar has this key twice, so neither is used")
        sample.usable = False
        return False
    sample.kinds.add(kind)
    cap, what = (MAX_MEMBER, TOO_LARGE) if kind == "image" else (base.MAX_CAPTION_FILE, "caption too long")
    if member.size > cap:
        bad.add(what, sample.where, f"the {kind} has {member.size} bytes, more than {cap}")
        return False
    return True


def _row(content: bytes, wanted: str | None, where: str, bad: BadItems) -> dict[str, Any] | None:
    """Return the values of a .json that may be captions, and the keys of its other texts: img2dataset puts addresses and EXIF there."""
    try:
        row = json_value(base.decoded(content), "the .json")
    except Rejected as error:
        bad.add(error.kind, where, error.why)
        return None
    if not isinstance(row, dict):
        return None
    return {
        key: value if key == wanted or key in base.CAPTION_COLUMNS else "" for key, value in row.items() if key == wanted or base.is_text(value)
    }


def _members(file: Any, size: int, where: str, bad: BadItems) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files within a tar; other members go to `bad`, and a damaged header ends the tar."""
    try:
        # "r:" accepts no compression: a compressed tar has no offsets to read members from, and it could expand without end
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (the caller closes the file)
    # besides its own errors, tarfile raises those of parsing values in a damaged header
    except Exception as error:
        bad.add("unreadable archive", where, f"the file is not an uncompressed tar: {' '.join(str(error).split())}")
        return
    last = -1
    while True:
        try:
            member = archive.next()
        except Exception as error:
            bad.add("damaged archive", where, f"the tar ends in a damaged member: {' '.join(str(error).split())}")
            return
        if member is None:
            break
        # a hostile header may have a negative size or lead in circles; a sparse member has the size that it would expand to
        end = member.offset_data + (member.size if member.isreg() and not member.issparse() else 0)
        if member.offset <= last or member.size < 0 or end > size:
            bad.add("damaged archive", where, f"the tar ends within {printable(member.name)}")
            return
        last = member.offset
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every member
        if member.isdir():
            continue
        if is_unsafe(member.name):
            bad.add(OUTSIDE, where, f"{member.name!r} leads out of the archive")
        elif not member.isreg() or member.issparse():
            bad.add("link in the archive", where, f"{member.name!r} is a link or not a regular file")
        elif not any(part.startswith(".") for part in plain(member.name).split("/")):  # as hidden files of a folder
            yield member
    # tarfile takes a damaged header, or a cut between two members, for the end; a complete tar ends with zeros
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        bad.add("damaged archive", where, "the tar has a damaged member or was cut off, and nothing after that is read")


def read_slice(tree: FileSource, path: Path, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset`; the reference to `tree` keeps a temporary file alive.

    The file is opened each time: a data set may have more shards than a process may open files.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def expand_braces(pattern: str, limit: int = 100_000) -> list[str]:
    """Expand a pattern such as {0000..0009}.tar or {a,b}.tar into names; raises `UsageError` beyond `limit` names."""
    start = pattern.find("{")
    end = pattern.find("}", start)
    if start < 0 or end < 0:
        return [pattern]
    low, dots, high = pattern[start + 1 : end].partition("..")
    if dots and low.isdecimal() and high.isdecimal():
        width = len(low) if low.startswith("0") else 0
        if abs(int(high) - int(low)) >= limit:
            raise UsageError(f"data {pattern} expands to more than {limit} files")
        choices = [f"{number:0{width}}" for number in range(int(low), int(high) + 1)]
        if not choices:
            raise UsageError(f"data {pattern} expands to no file: {low} is above {high}")
    else:
        choices = pattern[start + 1 : end].split(",")
    rests = expand_braces(pattern[end + 1 :], limit)
    if len(choices) * len(rests) > limit:
        raise UsageError(f"data {pattern} expands to more than {limit} files")
    return [pattern[:start] + choice + rest for choice in choices for rest in rests]
