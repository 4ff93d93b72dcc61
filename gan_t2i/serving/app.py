"""The routes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import Lifespan

from gan_t2i import __version__
from gan_t2i.core.errors import UsageError
from gan_t2i.sampling.edit import Change
from gan_t2i.sampling.inversion import mapped_generator
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.serving.errors import ApiError, AsciiJSONResponse, from_validation, invalid
from gan_t2i.serving.guard import Guard
from gan_t2i.serving.images_api import Generation, PictureRequest, answer, encode, event, sse, to_base64
from gan_t2i.serving.page import page_routes
from gan_t2i.serving.queue import DrawingQueue, Drawn
from gan_t2i.serving.settings import Limits
from gan_t2i.serving.shelf import Shelf
from gan_t2i.serving.uploads import open_pictures, read_edit

_MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@dataclass(frozen=True)
class Order:
    """A request that has its places in the queue."""

    request: PictureRequest
    pictures: Sequence[Future[Drawn]]


def create_app(
    model: Text2Image, name: str, *, created: int = 0, keys: Sequence[str] = (), limits: Limits | None = None, example: str = ""
) -> FastAPI:
    """Return the application that serves one model.

    Args:
        model: the model; from now on, it belongs to the application's thread.
        name: its id in the API.
        created: the time of its file, in seconds since 1970.
        keys: API keys, each of which opens all routes; without any, no request needs one.
        limits: bounds on time and memory.
        example: a prompt for the page to begin with.
    """
    limits = limits or Limits()
    registry = CollectorRegistry()
    queue = DrawingQueue(model, limits, registry)
    shelf = Shelf(limits)
    facts = {"resolution": model.info.resolution, "transparent": model.info.has_alpha, "max_tokens": model.encoder.max_tokens}
    described = {"id": name, "object": "model", "created": created, "owned_by": "gan_t2i", **facts}

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    async def place(request: Generation) -> AsyncIterator[Order]:
        """Hold places in the queue until the answer is sent, or its client has gone."""
        check(request)
        with queue.order(request.prompt, request.seeds(), request.truncation) as pictures:
            yield Order(request, pictures)

    async def place_edit(http: Request) -> AsyncIterator[Order]:
        """Do the same for the form of an edit."""
        request, files = await read_edit(http)
        check(request)
        try:
            mapped_generator(model)
        except UsageError as error:
            raise invalid("model", str(error)) from None
        picture, mask = await queue.run(partial(open_pictures, model, files, limits.upload_pixels))
        changes = [Change(request.prompt, request.source, seed, request.strength, mask=mask) for seed in request.seeds()]
        with queue.order_edits(picture, changes) as pictures:
            yield Order(request, pictures)

    def check(request: PictureRequest) -> None:
        """Check what depends on the model."""
        check_model(request.model or name)
        if request.background == "transparent" and not model.info.has_alpha:
            raise invalid("background", "this model draws opaque pictures")

    def check_model(wanted: str) -> None:
        if wanted != name:
            raise ApiError(404, f"there is no model {wanted!r} here; the model is {name!r}", code="model_not_found", param="model")

    app = _new_app(lifespan)
    app.add_middleware(Guard, keys=keys, limits=limits, registry=registry)

    _answer_errors(app)

    @app.post("/v1/images/generations")
    async def generations(order: Annotated[Order, Depends(place)], http: Request) -> Response:
        return await _send(order, http, shelf)

    @app.post("/v1/images/edits")
    async def edits(order: Annotated[Order, Depends(place_edit)], http: Request) -> Response:
        return await _send(order, http, shelf)

    _add_shelf(app, shelf)
    app.include_router(page_routes(queue, name, example))

    _add_models(app, described, check_model)
    _add_health(app, registry)
    return app


def _new_app(lifespan: Lifespan[FastAPI]) -> FastAPI:
    """Return an application without routes, which tells nobody anything."""
    return FastAPI(
        title="gan_t2i",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,  # the routes are OpenAI's; its pages would load scripts from elsewhere
        # it would report exceptions, which may hold prompts, to whatever collects traces here
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )


def _answer_errors(app: FastAPI) -> None:
    """Give every error OpenAI's envelope."""

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def refuse_values(request: Request, error: RequestValidationError) -> Response:
        return from_validation(error).response()

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # JSON that no parser takes, such as numbers of thousands of digits
            return ApiError(400, "the body cannot be read as JSON", code="invalid_json").response()
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "error")
        message = f"{error.detail}: {request.method} {request.url.path}"
        return ApiError(error.status_code, message, code=code, headers=error.headers).response()


def _add_models(app: FastAPI, described: dict[str, Any], check: Callable[[str], None]) -> None:
    """Add the list of models, which has one, and its description; `check` refuses other ids."""

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described]}

    @app.get("/v1/models/{wanted:path}")
    async def one_model(wanted: str) -> dict[str, Any]:
        check(wanted)
        return described


def _add_health(app: FastAPI, registry: CollectorRegistry) -> None:
    """Add the routes for whoever runs the server."""

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


async def _send(order: Order, http: Request, shelf: Shelf) -> Response:
    """Return the answer to an order: events, or JSON with the pictures or their addresses."""
    if order.request.stream:
        return StreamingResponse(_events(order), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    drawn = await asyncio.gather(*map(asyncio.wrap_future, order.pictures))
    files = [await asyncio.to_thread(encode, each.picture, order.request) for each in drawn]
    if order.request.response_format == "b64_json":
        data = [{"b64_json": to_base64(file)} for file in files]
    else:
        data = [{"url": str(http.url_for("picture", name=shelf.put(file, order.request.output_format)))} for file in files]
    return AsciiJSONResponse(answer(order.request, drawn, data))


def _add_shelf(app: FastAPI, shelf: Shelf) -> None:
    """Add the route for pictures whose addresses were given out."""

    @app.get("/pictures/{name}")
    async def picture(name: str) -> Response:
        file = shelf.get(name)
        if file is None:
            raise ApiError(404, "there is no such picture any more", code="picture_expired")
        return Response(file, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers={"Cache-Control": "no-store"})


async def _events(order: Order) -> AsyncIterator[bytes]:
    """Yield the server-sent events of an order, each picture as soon as it is drawn."""
    try:
        for picture in order.pictures:
            drawn = await asyncio.wrap_future(picture)
            for preview in (*range(order.request.partial_images), None):
                yield await asyncio.to_thread(event, order.request, drawn, preview)
    except Exception:
        yield sse("error", ApiError(500, "the server failed", code="internal_error").envelope)
        raise
