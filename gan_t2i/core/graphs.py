"""CUDA graphs: a GPU replays what a function does there without Python, which would launch its kernels one by one.

A graph reads and writes fixed addresses. So its inputs are copied into the same tensors before each replay, and no other tensor that it reads
may move.
"""

import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

Replay = Callable[[], dict[str, Tensor]]


class Backend(Protocol):
    """Records what a function does, to do it again."""

    def warm_up(self, function: Callable[[], object]) -> None:
        """Run a function as it will be captured."""

    def capture(self, function: Replay) -> Replay:
        """Record a function that returns tensors of one shape; each call of the result repeats it and returns new ones, in float32."""


class CudaGraphs:
    """The backend of a GPU; its graphs share one pool of memory, so only one of them may run at a time."""

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device)
        self._last: Callable[[], torch.cuda.CUDAGraph | None] = lambda: None

    def warm_up(self, function: Callable[[], object]) -> None:
        """Run a function on the stream of the captures, after what the current stream has under way and before what comes next there."""
        current = torch.cuda.current_stream(self._side.device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            function()
        current.wait_stream(self._side)

    def capture(self, function: Replay) -> Replay:
        """Record a function that returns tensors of one shape; raises RuntimeError, with the place, where it does what no graph can hold."""
        graph, last = torch.cuda.CUDAGraph(), self._last()
        pool = None if last is None else last.pool()  # torch refuses the handle of a pool whose graphs are all gone
        # on the side stream, as torch's own lies on the device of the first capture; other threads decode images meanwhile, and may pin memory
        capturing = torch.cuda.graph(graph, pool=pool, stream=self._side, capture_error_mode="thread_local")
        try:
            with torch.cuda.stream(self._side), capturing:  # twice, as `capturing` leaves the stream current where the capture fails
                results = function()
                values = torch.stack([value.float() for value in results.values()])
        except RuntimeError as error:
            raise RuntimeError(_explained(error)) from error
        self._last = weakref.ref(graph)
        names = list(results)

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return dict(zip(names, values.clone().unbind(), strict=True))  # the next replay overwrites them

        return replay


def reason_of(error: RuntimeError) -> str:
    """Return the first line of an error of torch, whose others are advice."""
    return (str(error).splitlines() or ["unknown"])[0]


def _explained(error: RuntimeError) -> str:
    """Return the reason of a failed capture, and its place outside torch. The end of such a capture raises another error, which hides it."""
    first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(first.__traceback__)]
    file, line = [place for place in places if not place[0].startswith(torch.__path__[0])][-1]
    return f"{reason_of(first)} ({Path(file).name}, line {line})"
