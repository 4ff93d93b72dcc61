"""Pictures with a .txt or .caption of the same stem beside them, in any depth of folders."""

import os
from collections.abc import Sequence

from gan_t2i.data.readers.base import (
    IMAGE_SUFFIXES,
    MAX_CAPTION_FILE,
    UNREAD,
    UNREAD_SUFFIXES,
    Reading,
    Source,
    captions_of_text,
    printable,
)
from gan_t2i.data.readers.tree import MISSING, FileSource, Rejected, by_plain_name, plain
from gan_t2i.data.records import BadItems, Record

CAPTION_SUFFIXES = (".txt", ".caption")  # the first one wins where a picture has both


def find_pairs(tree: FileSource, named: Sequence[str] | None) -> Sequence[str]:
    return [""] if named is None else []


def paired_pictures(tree: FileSource) -> list[str]:
    """Return the names of the pictures with a caption beside them."""
    stems = by_plain_name(_texts(tree))
    return [name for name in tree.names if name.lower().endswith(IMAGE_SUFFIXES) and plain(os.path.splitext(name)[0]) in stems]


def read_pairs(source: Source) -> Reading:
    """Read the pictures that have a caption file, with one caption per line."""
    tree, bad = source.tree, source.bad
    reading = Reading(notes=["captions from .txt files beside the images"])
    texts = _texts(tree)
    if texts and all(name.lower().endswith(".caption") for name in texts.values()):
        reading.notes = ["captions from .caption files beside the images"]
    alike = by_plain_name(texts)
    unused = dict(texts)
    captions_of: dict[str, tuple[str, ...]] = {}  # read once where a.png and a.jpg share a.txt
    for name in tree.names:
        stem, suffix = os.path.splitext(name)
        is_read = suffix.lower() in IMAGE_SUFFIXES
        if not is_read and suffix.lower() not in UNREAD_SUFFIXES:
            continue
        tree.ask_for(name)
        reading.images += 1
        stem = stem if stem in texts else alike.get(plain(stem), stem)
        unused.pop(stem, None)
        if not is_read:
            bad.add(UNREAD, printable(name), f"{suffix.lower()} is not read: convert it to PNG")
            continue
        if stem not in texts:
            bad.add("image without caption", printable(name), "the image has no .txt or .caption of the same stem")
            continue
        try:
            image = tree.picture(name)
        except Rejected as error:
            _reject(name, error, MISSING, bad)
            continue
        if stem not in captions_of:
            captions_of[stem] = _captions_in(source, texts[stem])
            reading.captions += len(captions_of[stem])
        if captions_of[stem]:
            reading.records.append(Record(image, captions_of[stem], printable(texts[stem])))
    for name in unused.values():
        reading.captions += 1
        bad.add("caption without image", printable(name), "the caption has no image of the same stem")
    for name in texts.values():
        tree.ask_for(name)
    return reading


def _texts(tree: FileSource) -> dict[str, str]:
    """Return the caption files by their stems."""
    texts: dict[str, str] = {}
    for suffix in reversed(CAPTION_SUFFIXES):
        texts |= {name[: -len(suffix)]: name for name in tree.names if name.lower().endswith(suffix)}
    return texts


def _captions_in(source: Source, name: str) -> tuple[str, ...]:
    try:
        content = source.tree.read(name, MAX_CAPTION_FILE)
    except Rejected as error:
        _reject(name, error, "unreadable caption", source.bad)
        return ()
    return captions_of_text(content, printable(name), source.settings, source.bad)


def _reject(name: str, error: Rejected, kind: str, bad: BadItems) -> None:
    # the name is from a listing, so a missing file is a broken link, a pipe or the like
    if error.kind == MISSING:
        bad.add(kind, printable(name), "the file is a broken link or not a regular file")
    else:
        bad.add(error.kind if error.kind != "unreadable file" else kind, printable(name), f"the file {error.why}")
