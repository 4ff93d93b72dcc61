"""Pictures that clients fetch by URL: in memory, for a time, under names that cannot be guessed."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from gan_t2i.serving.settings import Limits


class Shelf:
    """Keeps files for `Limits.shelf_seconds`, within `Limits.shelf_bytes`; the oldest make way for new ones."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # name -> time of its end, content
        self._bytes = 0

    def put(self, content: bytes, suffix: str) -> str:
        """Keep `content`, and return its name."""
        name = f"{secrets.token_urlsafe(24)}.{suffix}"
        self._files[name] = self._clock() + self._limits.shelf_seconds, content
        self._bytes += len(content)
        self._tidy()
        return name

    def get(self, name: str) -> bytes | None:
        """Return the file of that name, None where there is none any more."""
        self._tidy()
        _, content = self._files.get(name, (0.0, None))
        return content

    def _tidy(self) -> None:
        while self._files:
            name, (end, content) = next(iter(self._files.items()))
            if end > self._clock() and self._bytes <= self._limits.shelf_bytes:
                return
            del self._files[name]
            self._bytes -= len(content)
