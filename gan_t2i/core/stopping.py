"""SIGINT and SIGTERM: finish the step, save, exit. SIGKILL may follow within seconds."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Self


class Interrupted(Exception):
    """Raised inside `StopRequest.interruptible` when the process is asked to stop."""


class StopRequest:
    """Notes SIGINT and SIGTERM within ``with`` instead of obeying them; a second signal is obeyed where the process runs `alone`.

    With several processes no signal is obeyed: torchrun and cluster managers each pass on a signal that a process may have had already, and
    end by force what does not end in time. After an error none is obeyed either, because torchrun sends SIGTERM to all processes as soon as
    one has ended, and the others must live to print why they end.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.signal: int | None = None
        self._alone = alone
        self._interruptible = False

    def __enter__(self) -> Self:
        # only the main thread may handle signals; from another, a program stops by its own means
        handled = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._previous = {number: signal.signal(number, self._note) for number in handled}
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None and not self._alone:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise `Interrupted` out of the ``with`` as soon as a signal comes, or has come."""
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
    """SIGTERM on its way up to `cleanup_on_sigterm`."""


@contextlib.contextmanager
def cleanup_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the ``with`` like Ctrl-C, so that half-written files are removed, before it ends the process.

    It does nothing where SIGTERM is handled already, or outside the main thread.
    """
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
