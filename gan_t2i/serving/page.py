"""The page at /: one file that draws while a prompt is typed, and the four routes that it asks.

Everything that makes a picture stands in the page's fragment and in the bodies of its requests, so no prompt reaches a log.
"""

import base64
import hashlib
import io
import re
from functools import partial
from importlib import resources
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Response
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import encode_picture
from gan_t2i.core.words import split_words
from gan_t2i.sampling.explain import WordEffect, can_explain, word_effects
from gan_t2i.sampling.explore import draw_point
from gan_t2i.serving.errors import invalid
from gan_t2i.serving.images_api import SEEDS, checked_prompt
from gan_t2i.serving.queue import DrawingQueue

Prompt = Annotated[str, Field(max_length=1000), AfterValidator(checked_prompt)]
Share = Annotated[float, Field(ge=0, le=1)]
Offset = Annotated[float, Field(ge=-1, le=1)]


class Point(BaseModel):
    """The choices that make one picture of the page; see `sampling.explore.draw_point`."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Prompt
    to: Prompt | None = None
    t: Share = 0.0
    mixed: bool = False
    seed: int = Field(0, ge=0, lt=SEEDS)
    x: Offset = 0.0
    y: Offset = 0.0
    truncation: float = Field(1.0, ge=0, le=2)


def page_routes(queue: DrawingQueue, name: str, example: str) -> APIRouter:
    """Return the page and its routes, for the model of `queue`; `example` is a prompt to begin with."""
    model = queue.model
    html = (resources.files("gan_t2i.serving") / "page.html").read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": content_policy(html), "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    router = APIRouter()

    @router.get("/")
    async def page() -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers=headers)

    @router.post("/about")
    async def about() -> dict[str, Any]:
        return {"name": name, "resolution": model.info.resolution, "example": example}

    @router.post("/draw")
    async def draw(point: Point) -> Response:
        values = point.model_dump()
        drawing = partial(draw_point, model, values.pop("prompt"), truncation_psi=values.pop("truncation"), encode=queue.encoded, **values)
        try:
            picture = await queue.run(drawing)
        except UsageError as error:
            raise invalid("mixed", str(error)) from None
        return Response(encode_picture(picture, "PNG"), media_type="image/png", headers={"Cache-Control": "no-store"})

    @router.post("/words")
    async def words(point: Point) -> dict[str, Any]:
        unknown = set(model.unknown_words(point.prompt))
        [tokens] = model.encoder.count_tokens([point.prompt])
        return {
            "words": [{"word": word, "known": unknown.isdisjoint(split_words(word))} for word in point.prompt.split()],
            "tokens": tokens,
            "max_tokens": model.encoder.max_tokens,
        }

    @router.post("/effects")
    async def effects(point: Point) -> dict[str, Any]:
        if not can_explain(model, point.prompt):
            return {"effects": []}
        _, rest = await queue.run(partial(word_effects, model, point.prompt, seed=point.seed, truncation_psi=point.truncation))
        found: list[WordEffect] = []
        while (effect := await queue.run(partial(next, rest, None))) is not None:
            found.append(effect)
        largest = max(effect.change.max().item() for effect in found) or 1.0
        return {"effects": [{"share": effect.change.mean().item(), "mask": mask(effect.change / largest)} for effect in found]}

    return router


def content_policy(html: str) -> str:
    """Return the Content-Security-Policy of the page: its own script and styles, its own server, and nothing else."""
    hashes = {
        tag: " ".join(f"'sha256-{_digest(text)}'" for text in re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL))
        for tag in ("script", "style")
    }
    # the script sets the place of the dot and the mask of the light as properties, which needs no permission
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def mask(change: Tensor) -> str:
    """Return a PNG, as base64, that is opaque where `change` [R, R] in [0, 1] is small."""
    alpha = (255 * (1 - change.clamp(0, 1).sqrt())).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(np.dstack([np.zeros_like(alpha), alpha]), "LA").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
