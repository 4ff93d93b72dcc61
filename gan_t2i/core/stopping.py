"""What SIGINT and SIGTERM do to work that must not be lost: whoever asks a process to end may kill it a few seconds later."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Self


class Interrupted(Exception):
    """Raised out of work that can be left undone, once a process is asked to stop."""


class StopRequest:
    """Within ``with``, SIGINT and SIGTERM are noted instead of obeyed; a second one is obeyed, where the process works `alone`.

    Of several processes, none obeys: torchrun and cluster managers each pass on a signal that a process may have had already, and end by
    force what does not end in time.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.signal: int | None = None
        self._alone = alone
        self._interruptible = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within ``with``, what is done is given up by `Interrupted` as soon as a signal comes, or has come."""
        self._interruptible = True
        try:
            if self.signal is not None:
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if self._alone:
            signal.signal(number, self._previous[signal.Signals(number)])
        if self._interruptible:
            raise Interrupted


class _Terminated(KeyboardInterrupt):
    """SIGTERM, on its way up to `cleanup_on_sigterm`."""


@contextlib.contextmanager
def cleanup_on_sigterm() -> Iterator[None]:
    """Within ``with``, SIGTERM unwinds like Ctrl-C, so that what is done is kept and what is half written removed, and then ends the process
    as it would have. Does nothing where SIGTERM is handled already, or outside the main thread."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def unwind(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
