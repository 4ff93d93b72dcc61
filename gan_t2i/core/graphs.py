"""CUDA graphs: a GPU replays what a function does there without Python, which would launch its kernels one by one.

A graph reads and writes fixed addresses. So its inputs are copied into the same tensors before each replay, and no other tensor that it reads
may move.
"""

from collections.abc import Callable
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
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], object]) -> None:
        """Run a function on the stream of the captures, after what the current stream has under way and before what comes next there."""
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            function()
        torch.cuda.current_stream().wait_stream(self._side)

    def capture(self, function: Replay) -> Replay:
        """Record a function that returns tensors of one shape; raises RuntimeError where it does what a CUDA graph cannot hold."""
        graph = torch.cuda.CUDAGraph()
        # on the side stream, as torch's own lies on the device of the first capture; other threads decode images meanwhile, and may pin memory
        with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
            results = function()
            values = torch.stack([value.float() for value in results.values()])
        names = list(results)

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return dict(zip(names, values.clone().unbind(), strict=True))  # the next replay overwrites them

        return replay


def reason_of(error: RuntimeError) -> str:
    """Return the first line of an error of torch, whose others are advice."""
    return (str(error).splitlines() or ["unknown"])[0]
