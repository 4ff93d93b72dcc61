"""COCO's captions JSON (images and annotations), and the dataset.json of StyleGAN3 (a list of labels), with labels as captions."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.readers.base import Gallery, Reading, Source, captions_of_value, clean_captions, split_of_name
from gan_t2i.data.readers.tables import json_object
from gan_t2i.data.readers.tree import FileSource

STYLEGAN = "dataset.json"


def find_coco(tree: FileSource, named: Sequence[str] | None) -> Sequence[str]:
    """Find JSON files that are named, or else captions_*.json in the folder or its subfolder annotations."""
    if named is not None:
        return [name for name in named if name.lower().endswith(".json") and name != STYLEGAN]
    bases = [name.removeprefix("annotations/") for name in tree.names]
    return [name for name, base in zip(tree.names, bases, strict=True) if base.startswith("captions_") and base.endswith(".json")]


def read_coco(source: Source) -> Reading:
    """Read the images that have annotations, in the order of the file."""
    return source.read_each(_read_annotations).without_single_side()


def _read_annotations(source: Source, name: str) -> Reading:
    content = json_object(source.tree, name)
    label = PurePosixPath(name).name
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise GanT2IError(f"{label} is not a COCO captions file: it needs the lists images and annotations")
    reading = Reading(notes=[f"captions from the annotations of {label}"])
    texts: dict[Any, list[Any]] = {}
    for number, annotation in enumerate(annotations):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if isinstance(image_id, (int, str)):
            texts.setdefault(image_id, []).append(annotation.get("caption"))
        else:
            source.bad.add("malformed JSON", f"{label}: annotation {number}", "the annotation has no image_id")
    folder = label.removeprefix("captions_").removesuffix(".json")  # train2017
    side = split_of_name(folder.rstrip("0123456789"))
    gallery = Gallery(source.pictures(folder), reading, source.bad)
    # an image that is listed twice is the same one
    rows = {(row["id"], str(row.get("file_name"))) for row in images if isinstance(row, dict) and isinstance(row.get("id"), (int, str))}
    ids = Counter(image_id for image_id, _ in rows)
    for number, row in enumerate(images):
        where = f"{label}: image {number}"
        row = row if isinstance(row, dict) else {}
        image_id = row.get("id") if isinstance(row.get("id"), (int, str)) else None
        if ids[image_id] > 1:
            source.bad.add("duplicate key", where, f"the id {image_id!r} belongs to {ids[image_id]} images, so none of them is used")
            continue
        picture = gallery.find(row, where)
        if picture is not None:
            captions = captions_of_value(texts.get(image_id, []), repr(row["file_name"]), where, source.bad)
            gallery.keep(picture, captions, where, side)
    for image_id, unused in texts.items():
        if image_id not in ids:
            where = f"{label}: image_id {image_id!r}"
            source.bad.add("caption without image", where, f"{len(unused)} annotations belong to no image of the list")
    return reading


def find_stylegan(tree: FileSource, named: Sequence[str] | None) -> Sequence[str]:
    if named is not None:
        return [name for name in named if name == STYLEGAN]
    return [STYLEGAN] if tree.is_file(STYLEGAN) else []


def read_stylegan(source: Source) -> Reading:
    """Read the labels, each a picture's name with a caption or a list of captions."""
    labels = json_object(source.tree, STYLEGAN).get("labels")
    if not isinstance(labels, list):
        raise GanT2IError(f"{STYLEGAN} has no captions: labels must be a list of picture and caption, not {type(labels).__name__}")
    reading = Reading(notes=[f"captions from the labels of {STYLEGAN}"])
    gallery = Gallery(source.pictures(), reading, source.bad)
    for number, label in enumerate(labels):
        where = f"{STYLEGAN}: label {number}"
        name, caption = label if isinstance(label, list) and len(label) == 2 else (None, None)
        picture = gallery.find({"file_name": name}, where)
        if picture is None:
            continue
        texts = [caption] if isinstance(caption, str) else caption
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            source.bad.add("caption not text", where, f"the label is a {type(caption).__name__}, not a caption")
            continue
        gallery.keep(picture, clean_captions(texts, where, source.bad), where)
    return reading
