"""Requests for an edit: a form with a picture, perhaps its mask, and the fields of `Edit`. All of it stays in memory."""

import asyncio
import math
from collections.abc import Mapping
from functools import partial

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, parse_options_header
from torch import Tensor

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.decode import picture_size
from gan_t2i.data.records import LazyFile
from gan_t2i.sampling.edit import read_mask
from gan_t2i.sampling.inversion import read_picture
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.serving.errors import ApiError, invalid
from gan_t2i.serving.images_api import Edit

_READERS = {"image": read_picture, "mask": read_mask}
_MOST_PARTS = 64


async def read_edit(http: Request) -> tuple[Edit, dict[str, bytes]]:
    """Return the fields of the form, and the files by their names; raises `ApiError` and `RequestValidationError`."""
    if http.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):  # browsers send forms anywhere without asking first
        raise ApiError(403, "pages of other sites cannot send pictures here", code="cross_site")
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    body = b"".join([part async for part in http.stream()])  # http.body() would keep it beside its parts
    for name, value in await asyncio.to_thread(_parts, http.headers.get("content-type", ""), body):
        name = name.removesuffix("[]")
        if name in fields or name in files:
            raise invalid(name, "one picture for each request" if name == "image" else "it is given twice")
        if isinstance(value, str):
            if value:  # nothing is the null of a form
                fields[name] = value
        elif name in _READERS:
            files[name] = value
        else:
            raise invalid(name, "there is no such file in a request", "unknown_parameter")
    if "image" not in files:
        raise invalid("image", "send a picture as a file", "missing_required_parameter")
    try:
        return Edit.model_validate(fields, strict=False), files  # the values are text
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from None


def _parts(content_type: str, body: bytes) -> list[tuple[str, str | bytes]]:
    """Return the parts of a form in their order, fields as text and files as bytes."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise ApiError(400, "the body must be a form, sent with Content-Type: multipart/form-data", code="invalid_form")
    parts: list[tuple[str, str | bytes]] = []

    def add(name: bytes | None, value: str | bytes) -> None:
        if len(parts) == _MOST_PARTS:
            raise FormParserError(f"more than {_MOST_PARTS} parts")
        parts.append((_text(name), value))

    def add_file(file: File) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read())
        file.close()  # otherwise its memory waits for the garbage collector

    try:
        parser = FormParser(
            kind.decode(),
            lambda field: add(field.field_name, _text(field.value)),
            add_file,
            boundary=options.get(b"boundary"),
            config={"MAX_MEMORY_FILE_SIZE": math.inf},  # otherwise they go to disk; the guard has limited the whole body
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:  # its message repeats parts of the form
        raise ApiError(400, "the form cannot be read", code="invalid_form") from None
    return parts


def _text(value: bytes | None) -> str:
    """Return UTF-8 text; other bytes become what `checked_prompt` refuses."""
    return (value or b"").decode(errors="surrogateescape")


def open_pictures(model: Text2Image, files: Mapping[str, bytes], most_pixels: int) -> tuple[Tensor, Tensor | None]:
    """Return the picture and its mask as `sampling.edit.edit` takes them.

    Raises `ApiError` for a file that is broken or has more than `most_pixels`, and for a mask of another shape than the picture.
    """
    opened: dict[str, Tensor] = {}
    sizes: set[tuple[int, int]] = set()
    for name, content in sorted(files.items()):
        source = LazyFile("the file", partial(bytes, content))
        try:
            sizes.add(size := picture_size(source))
            if math.prod(size) > most_pixels:
                raise GanT2IError(f"it has {size[0]:,} x {size[1]:,} pixels, and at most {most_pixels:,} are read")
            if len(sizes) > 1:
                raise GanT2IError("it has another shape than the picture")
            opened[name] = _READERS[name](source, model)
        except GanT2IError as error:
            raise invalid(name, str(error)) from None
    return opened["image"], opened.get("mask")
