"""A client that can close its connection at any time."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any


async def post(
    app: Any, path: str, body: bytes, leave: asyncio.Event | None = None, kind: str = "application/json", *, is_whole: bool = True
) -> list[Any]:
    """Send a request, or its beginning, to the application, and end the connection when `leave` is set; returns what was sent back."""
    sent: list[Any] = []

    async def messages() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "http.request", "body": body, "more_body": not is_whole}
        await (leave or asyncio.Event()).wait()
        while True:
            yield {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", kind.encode())]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers, "asgi": {"spec_version": "2.3"}}
    await app(scope, messages().__anext__, send)
    return sent
