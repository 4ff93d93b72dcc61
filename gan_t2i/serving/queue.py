"""The thread that owns the model. Pictures wait for it in the order of their requests, in a queue that has an end."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

from PIL import Image
from prometheus_client import CollectorRegistry, Gauge, Histogram
from torch import Tensor

from gan_t2i.sampling.draw import draw_one, encode_prompt, latent
from gan_t2i.sampling.edit import Change, edit_in_pieces
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.serving.errors import ApiError
from gan_t2i.serving.settings import Limits
from gan_t2i.text.batch import TextBatch

T = TypeVar("T")
W = TypeVar("W")


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as the model reads it."""

    text: TextBatch
    tokens: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Drawn:
    """A picture with its seed, and what the model read."""

    picture: Image.Image
    seed: int
    prompt: ReadPrompt


class DrawingQueue:
    """Draws for all requests, one picture at a time.

    Requests that wait together are not drawn as one batch: kernels round differently in another batch, and a picture is to have the bits that
    `Text2Image.generate` gives it, whatever is drawn beside it. What they share is the encoded prompt, which is kept.

    All methods but the drawing itself run in the thread of the event loop, so nothing needs a lock.
    """

    def __init__(self, model: Text2Image, limits: Limits, registry: CollectorRegistry) -> None:
        self.model = model
        self.pending = 0
        """Pictures of requests that are not answered yet."""
        self._limit = limits.pictures
        self._thread = ThreadPoolExecutor(1, "drawing")
        self._read = lru_cache(limits.prompts)(self._read_anew)
        self._seconds = Histogram("gan_t2i_drawing_seconds", "Time to draw one picture, its prompt included.", registry=registry)
        self._latest = 0.0  # seconds
        Gauge("gan_t2i_pictures_pending", "Pictures of requests that are not answered yet.", registry=registry).set_function(
            lambda: self.pending
        )

    def order(self, prompt: str, seeds: Sequence[int], truncation_psi: float) -> contextlib.AbstractContextManager[list["Future[Drawn]"]]:
        """Return a context that reserves a place for a picture of each seed, and yields their futures; see `_reserve`."""
        return self._reserve([partial(self._draw, prompt, seed, truncation_psi) for seed in seeds], self._at_once)

    def order_edits(self, picture: Tensor, changes: Sequence[Change]) -> contextlib.AbstractContextManager[list["Future[Drawn]"]]:
        """Return the same for each of the changes of a picture, one of `sampling.inversion.read_picture`."""
        return self._reserve([self._edit(picture, change) for change in changes], self._in_pieces)

    async def run(self, work: Callable[[], T]) -> T:
        """Do one piece of work in the drawing thread, so that others have their turns between it and the next."""
        with self._reserve([work], self._at_once) as [done]:
            return await asyncio.wrap_future(done)

    @contextlib.contextmanager
    def _reserve(self, works: Sequence[W], begin: Callable[[Sequence[W]], list["Future[T]"]]) -> Iterator[list["Future[T]"]]:
        """Yield the future result of each of `works`, which use the model. What has not begun when the ``with`` ends never does.

        Raises `ApiError` 429 where too many pictures are pending already.
        """
        if self.pending + len(works) > self._limit:
            seconds = max(1, round(self.pending * self._latest))
            message = f"{self.pending} pictures of at most {self._limit} are being drawn or sent: try again in {seconds} s"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": str(seconds)})
        self.pending += len(works)
        futures = begin(works)
        try:
            yield futures
        finally:
            self.pending -= len(works)
            for future in futures:
                future.cancel()

    def _at_once(self, works: Sequence[Callable[[], T]]) -> list["Future[T]"]:
        return [self._thread.submit(work) for work in works]

    def _in_pieces(self, works: Sequence[Iterator[T | None]]) -> list["Future[T]"]:
        """Begin `works`, iterators that yield None until they yield their result; each waits for the end of the one before."""
        futures: list[Future[T]] = [Future() for _ in works]
        self._thread.submit(self._take_piece, deque(zip(works, futures, strict=True)))
        return futures

    def _take_piece(self, works: deque[tuple[Iterator[T | None], "Future[T]"]]) -> None:
        """Do one piece of the first of `works`. The next one waits behind what others have asked for by then."""
        pieces, done = works[0]
        if done.cancelled():  # as are all that follow
            return
        settle: Callable[[], None] | None = None
        try:
            if (result := next(pieces)) is not None:
                settle = partial(done.set_result, result)
        except Exception as error:
            settle = partial(done.set_exception, error)
        if settle and done.set_running_or_notify_cancel():
            works.popleft()
            settle()
        if works:
            self._thread.submit(self._take_piece, works)

    def encoded(self, prompt: str) -> TextBatch:
        """Return an encoded prompt, which is kept for its next pictures; for work in the drawing thread."""
        return self._read(prompt).text

    def close(self) -> None:
        """End the thread, after the picture that it is drawing."""
        self._thread.shutdown(cancel_futures=True)

    def _draw(self, prompt: str, seed: int, truncation_psi: float) -> Drawn:
        began = time.perf_counter()
        read = self._read(prompt)
        picture = draw_one(self.model.generator, latent(self.model.generator, seed), read.text, truncation_psi)
        self._note(began)
        return Drawn(picture, seed, read)

    def _edit(self, picture: Tensor, change: Change) -> Iterator[Drawn | None]:
        began = time.perf_counter()
        read = self._read(change.prompt)
        for edited in edit_in_pieces(self.model, picture, change):
            if edited is not None:
                self._note(began)
            yield Drawn(edited, change.seed, read) if edited is not None else None

    def _note(self, began: float) -> None:
        self._latest = time.perf_counter() - began
        self._seconds.observe(self._latest)

    def _read_anew(self, prompt: str) -> ReadPrompt:
        encoder = self.model.encoder
        text = encode_prompt(self.model.generator, encoder, prompt)
        return ReadPrompt(text, int(text.mask.sum()), tuple(self.model.warnings(prompt)))
