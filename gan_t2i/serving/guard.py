"""The guard that every request passes: its id, the API key, limits of size and time, the end of requests whose client has gone, and the log.

The log has method, path and status. Prompts are in bodies, and in nothing that is logged.
"""

import asyncio
import contextlib
import logging
import secrets
import traceback
from collections.abc import Callable, Iterator, Sequence
from hmac import compare_digest

from prometheus_client import CollectorRegistry, Counter, Gauge
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gan_t2i.core.log import visible
from gan_t2i.core.words import shorten
from gan_t2i.serving.errors import ApiError
from gan_t2i.serving.settings import Limits

log = logging.getLogger(__name__)

_OPEN = {"/", "/healthz"}  # need no key: a page that asks for one, and what tells a container's keeper that all is well
_UPLOADS = {"/v1/images/edits"}
_PICTURES = "/pictures/"  # nor do these: their names are secrets
_METHODS = {"GET", "POST"}
_LOGGED = 100  # characters of a request in the log
_RETRY_SECONDS = 2
_GONE = 499  # in the log, as nginx has it: the client has closed the connection


class _Gone(Exception):
    """Raised when the client has closed the connection."""


class _Answer:
    """Sends an answer with its request's id, and notes how far it came."""

    def __init__(self, send: Send) -> None:
        self.status: int | None = None
        self.is_complete = False
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = f"req_{secrets.token_hex(16)}"
        elif message["type"] == "http.response.body":
            self.is_complete = not message.get("more_body", False)
        await self._send(message)


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], limits: Limits, registry: CollectorRegistry) -> None:
        self._app, self._limits = app, limits
        self._keys = [key.encode() for key in keys]
        self._held = 0  # bytes
        held = Gauge("gan_t2i_body_bytes", "Bytes of the bodies of requests that are not answered yet.", registry=registry)
        held.set_function(lambda: self._held)
        self._requests = Counter("gan_t2i_requests", "Requests.", ["method", "path", "status"], registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            async with asyncio.timeout(self._limits.seconds):
                self._check_key(scope)
                with self._room() as hold:
                    await self._run(scope, await self._body(scope, receive, hold), receive, answer)
        except _Gone:
            answer.status = _GONE
        except ApiError as error:
            await _fail(error, scope, receive, answer)
        except TimeoutError:
            await _fail(ApiError(503, f"no answer within {self._limits.seconds:g} s", code="timeout"), scope, receive, answer)
        except asyncio.CancelledError:  # by uvicorn, when the time to drain is over; raised again, it would become a traceback and a bare 500
            await _fail(ApiError(503, "the server has stopped before it was done", code="stopped"), scope, receive, answer)
        except Exception as error:  # its message may hold a prompt
            log.error(f"{type(error).__name__} in\n{''.join(traceback.format_tb(error.__traceback__))}".rstrip())
            await _fail(ApiError(500, "the server failed", code="internal_error"), scope, receive, answer)
        finally:
            self._note(scope, answer)

    def _check_key(self, scope: Scope) -> None:
        if not self._keys or scope["path"] in _OPEN or scope["path"].startswith(_PICTURES):
            return
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        # all are compared, so that the time tells nothing
        if scheme.lower() != b"bearer" or not sum(compare_digest(given, key) for key in self._keys):
            message = "the API key is missing or wrong: send Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    @contextlib.contextmanager
    def _room(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes room for bytes of a body until the ``with`` ends; it raises `ApiError` 429 where there is none."""
        mine = 0

        def hold(count: int) -> None:
            nonlocal mine
            if self._held + count > self._limits.bodies:
                message = f"the bodies of all requests together have more than {self._limits.bodies:,} bytes: try again in {_RETRY_SECONDS} s"
                raise ApiError(429, message, code="bodies_full", headers={"Retry-After": str(_RETRY_SECONDS)})
            mine += count
            self._held += count

        try:
            yield hold
        finally:
            self._held -= mine

    async def _body(self, scope: Scope, receive: Receive, hold: Callable[[int], None]) -> bytes:
        body, limit = bytearray(), self._limits.upload if scope["path"] in _UPLOADS else self._limits.body
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            part = message.get("body", b"")
            if len(body) + len(part) > limit:
                raise ApiError(413, f"the body has more than {limit:,} bytes", code="body_too_large")
            hold(len(part))
            body += part
            if not message.get("more_body", False):
                return bytes(body)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, answer: _Answer) -> None:
        """Run the application until it is done, or the client has gone."""
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        del body  # the application may drop it

        async def replay() -> Message:
            return messages.pop() if messages else await asyncio.Future()

        task = asyncio.create_task(_call(self._app, scope, replay, answer.send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not (task.done() or answer.is_complete):  # a complete answer counts as a disconnection too
                raise _Gone
            await task
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    def _note(self, scope: Scope, answer: _Answer) -> None:
        # the template of a route, because the name of a picture is a secret
        path = getattr(scope.get("route"), "path", None)
        status = answer.status or _GONE
        # clients may name what methods they like, and each label takes memory
        self._requests.labels(scope["method"] if scope["method"] in _METHODS else "other", path or "other", status).inc()
        request = shorten(visible(f"{scope['method']} {path or scope['path']}"), _LOGGED)  # one line, whatever the client sends
        log.info(f"{request} {status}")


async def _call(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _fail(error: ApiError, scope: Scope, receive: Receive, answer: _Answer) -> None:
    """Send an error. Where an answer has begun, nothing: the connection then breaks, and the client sees that it is not whole."""
    if answer.status is None:
        await error.response()(scope, receive, answer.send)
