"""Requests and answers of OpenAI's images API: https://developers.openai.com/api/reference/resources/images, as of November 2026."""

import base64
import json
import re
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from PIL import Image
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from gan_t2i.core.arguments import as_prompts
from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import QUALITY, encode_picture, on_white
from gan_t2i.serving.errors import invalid
from gan_t2i.serving.queue import Drawn, ReadPrompt

MOST_PIXELS = 1536
"""Largest side of a picture."""
SEEDS = 10**18
"""Seeds are below it, as those of `gan-t2i sample`."""
_RETIRED_QUALITIES = {"standard": "medium", "hd": "high"}


def checked_prompt(value: str, field: ValidationInfo) -> str:
    """Return a prompt; raises `ApiError` where it is empty or is not text."""
    try:
        return as_prompts(value)[0]
    except UsageError:
        raise invalid(field.field_name or "prompt", "it is empty, or is not UTF-8 text: say what to draw") from None


def _size(value: Any) -> tuple[int, int] | None:
    """Return width and height in pixels, None for the model's own."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value) if isinstance(value, str) else None
    if value != "auto" and not match:
        raise invalid("size", "it is auto, or pixels such as 256x256")
    size = (int(match[1]), int(match[2])) if match else None
    if size and max(size) > MOST_PIXELS:
        raise invalid("size", f"at most {MOST_PIXELS}x{MOST_PIXELS} pixels")
    return size


Prompt = Annotated[str, Field(max_length=32_000), AfterValidator(checked_prompt)]


def _no_negative(value: Any) -> None:
    raise invalid("negative", "negative prompts are not supported", "unsupported_parameter")


class PictureRequest(BaseModel):
    """Base of all requests for pictures. Null is the same as nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    events: ClassVar[str]
    """Kind of the events of a stream."""

    prompt: Prompt
    model: str | None = None
    n: int = Field(1, ge=1, le=10)
    size: Annotated[tuple[int, int] | None, BeforeValidator(_size)] = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(None, ge=0, le=100)
    background: Literal["auto", "transparent", "opaque"] = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    # of this project
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    # without an effect here
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] = "auto"
    user: str = ""
    safety_identifier: str = ""
    moderation: str = ""
    style: str = ""
    complexity: str = ""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.output_format == "png" and self.output_compression not in (None, 100):
            raise invalid("output_compression", "png files lose nothing: it goes with jpeg and webp")
        if self.output_format == "jpeg" and self.background == "transparent":
            raise invalid("background", "jpeg files are opaque: transparent goes with png and webp")
        if self.stream and self.response_format == "url":
            raise invalid("response_format", "a stream carries b64_json")
        if self.seed is not None and self.seed + self.n > SEEDS:
            raise invalid("seed", f"its pictures would have seeds up to {self.seed + self.n - 1}; the largest is {SEEDS - 1}")
        return self

    def seeds(self) -> list[int]:
        """Return a seed for each picture: those from `seed` on, or random ones."""
        if self.seed is not None:
            return list(range(self.seed, self.seed + self.n))
        return [secrets.randbelow(2**32) for _ in range(self.n)]


class Generation(PictureRequest):
    """Body of a request for pictures of a prompt."""

    events = "image_generation"

    truncation: float = Field(1.0, ge=0, le=2)
    negative: Annotated[None, BeforeValidator(_no_negative)] = None


class Edit(PictureRequest):
    """Fields of a request for changes of a picture, which comes beside them."""

    events = "image_edit"

    source: Prompt | None = None
    strength: float = Field(1.0, ge=0, le=3)
    input_fidelity: str = ""  # without an effect here


def encode(picture: Image.Image, request: PictureRequest, shrink: int = 1) -> bytes:
    """Return the picture as a file of the size and format that the request asks for, each side divided by `shrink`."""
    width, height = (max(1, side // shrink) for side in request.size or picture.size)
    if request.background == "opaque" or request.output_format == "jpeg":
        picture = on_white(picture)
    picture = on_canvas(picture, width, height)
    quality = QUALITY if request.output_compression is None else request.output_compression
    return encode_picture(picture, request.output_format.upper(), quality)


def on_canvas(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Return the square picture filtered to fit, in the middle of a canvas that is transparent, or has the median colour of its edge."""
    side = min(width, height)
    if side != picture.width:  # Pillow multiplies colours by alpha before it filters them
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    if width == height:
        return picture
    pixels = np.asarray(picture)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = (0, 0, 0, 0) if picture.mode == "RGBA" else tuple(np.median(edge, axis=0).astype(int).tolist())
    canvas = Image.new(picture.mode, (width, height), ground)
    canvas.paste(picture, ((width - side) // 2, (height - side) // 2))
    return canvas


def described(request: PictureRequest, drawn: Drawn) -> dict[str, Any]:
    """Return what an answer and an event both say about a picture."""
    width, height = request.size or drawn.picture.size
    opaque = drawn.picture.mode == "RGB" or request.background == "opaque" or request.output_format == "jpeg"
    return {
        "size": f"{width}x{height}",
        "quality": _RETIRED_QUALITIES.get(request.quality, request.quality),
        "output_format": request.output_format,
        "background": "opaque" if opaque else "transparent",
    }


def answer(request: PictureRequest, drawn: Sequence[Drawn], data: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the body of an answer; `data` are the pictures."""
    entries = [{**entry, "seed": each.seed} for entry, each in zip(data, drawn, strict=True)]
    return {"created": int(time.time()), "data": entries, **described(request, drawn[0]), **_ending(request, drawn[0].prompt)}


def event(request: PictureRequest, drawn: Drawn, preview: int | None = None) -> bytes:
    """Return a server-sent event: the picture, or its preview of that number.

    A GAN has no half-drawn picture. A preview is the picture at 1/2, 1/4 or 1/8 of its size, the smallest first: a picture to show while the
    rest is under way.
    """
    kind = f"{request.events}.{'completed' if preview is None else 'partial_image'}"
    shrink = 1 if preview is None else 2 ** (request.partial_images - preview)
    values = {"type": kind, "b64_json": to_base64(encode(drawn.picture, request, shrink)), "created_at": int(time.time())}
    last = {"partial_image_index": preview} if preview is not None else {"seed": drawn.seed, **_ending(request, drawn.prompt)}
    return sse(kind, {**values, **described(request, drawn), **last})


def sse(kind: str, values: dict[str, Any]) -> bytes:
    """Return a server-sent event of that kind."""
    return f"event: {kind}\ndata: {json.dumps(values)}\n\n".encode()


def to_base64(content: bytes) -> str:
    """Return bytes as text."""
    return base64.b64encode(content).decode()


def _ending(request: PictureRequest, prompt: ReadPrompt) -> dict[str, Any]:
    """Return what is said once for a request: the tokens that the model read, and what it did not understand."""
    details = {"text_tokens": prompt.tokens, "image_tokens": 0}
    usage = {"input_tokens": prompt.tokens, "input_tokens_details": details, "output_tokens": 0, "total_tokens": prompt.tokens}
    identifier = request.safety_identifier or request.user
    return {"usage": usage, "warnings": list(prompt.warnings), **({"safety_identifier": identifier} if identifier else {})}
