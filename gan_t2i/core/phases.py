"""Named phases of a computation: they always show in a profiler's trace, and `PhaseTimer` times them.

The timer uses its own clock and not the profiler, which makes many small operations look dearer than a few large ones.
"""

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch.profiler import record_function

from gan_t2i.core.runtime import synchronize

PREFIX = "gan_t2i/"
"""Prefix of the phases' names in a trace."""
REST = "rest"
"""Name of the time outside all phases in a `PhaseTimer`."""

_timer: ContextVar["PhaseTimer | None"] = ContextVar("phase timer", default=None)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark a ``with`` block, or a decorated function, as the phase `name`."""
    timer = _timer.get()
    with record_function(PREFIX + name):
        if timer is None:
            yield
            return
        timer.begin(name)
        try:
            yield
        finally:
            timer.end()


class PhaseTimer:
    """Adds up the time of each phase within ``with``. An inner phase does not count towards the outer one, so all phases sum to the whole.

    The device's queue is emptied at each change, so phases do not overlap there. `seconds` and `calls` hold the results by phase.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = 0.0

    def begin(self, name: str) -> None:
        self._book()
        self._open.append(name)
        self.calls[name] += 1

    def end(self) -> None:
        self._book()
        self._open.pop()

    def _book(self) -> None:
        """Add the time since the last change to the innermost phase."""
        synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def __enter__(self) -> "PhaseTimer":
        self._token = _timer.set(self)
        self.begin(REST)
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
        _timer.reset(self._token)
