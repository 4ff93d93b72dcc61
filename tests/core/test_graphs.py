"""CUDA graphs, with a stand-in for torch.cuda that does what torch 2.11 to 2.14 do around a capture; the recording itself needs a GPU."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gan_t2i.core.graphs import CudaGraphs

GPU = torch.device("cuda", 1)  # not the current one
HIDDEN = "operation failed due to a previous error during capture"


class Stream:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.waited: list[Stream] = []

    def wait_stream(self, other: "Stream") -> None:
        self.waited.append(other)


class Cuda:
    """Streams and pools as torch.cuda has them."""

    def __init__(self) -> None:
        self.default = {number: Stream(torch.device("cuda", number)) for number in range(2)}
        self.current = self.default[0]
        self.pools: list[int] = []  # of the graphs so far
        self.broken = ""

    def current_stream(self, device: torch.device | None = None) -> Stream:
        return self.default[device.index] if device else self.current

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def graph(self, graph: Any, *, pool: int | None, stream: Stream, capture_error_mode: str) -> Any:
        return Capture(self, graph, pool, stream)


class Graph:
    number: int

    def pool(self) -> int:
        return self.number

    def replay(self) -> None: ...


class Capture:
    """torch.cuda.graph: it goes back to the stream before only where its end succeeds."""

    def __init__(self, cuda: Cuda, graph: Graph, pool: int | None, stream: Stream) -> None:
        self.cuda, self.graph, self.stream = cuda, graph, stream
        graph.number = len(cuda.pools) if pool is None else pool

    def __enter__(self) -> None:
        self.before, self.cuda.current = self.cuda.current, self.stream
        self.cuda.pools.append(self.graph.number)

    def __exit__(self, *exception: object) -> None:
        if self.cuda.broken:
            raise RuntimeError(self.cuda.broken)
        self.cuda.current = self.before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    for name in ("current_stream", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    return cuda


def one() -> dict[str, torch.Tensor]:
    return {"one": torch.ones(())}


def test_graphs_share_a_pool_until_the_last_of_them_is_gone(cuda: Cuda) -> None:
    """torch takes the handle of a pool no more once its graphs are gone, as after a rollback."""
    graphs = CudaGraphs(GPU)
    held = [graphs.capture(one) for _ in range(3)]
    del held[:2]
    held.append(graphs.capture(one))
    assert cuda.pools == [0, 0, 0, 0]
    held.clear()
    held = [graphs.capture(one) for _ in range(2)]
    assert cuda.pools == [0, 0, 0, 0, 4, 4]
    assert held[0]()["one"] == 1


def test_a_capture_that_fails_says_where_and_leaves_the_stream_as_it_was(cuda: Cuda) -> None:
    def slip() -> dict[str, torch.Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nadvice")

    for cuda.broken in ("", HIDDEN):
        with pytest.raises(RuntimeError) as error:
            CudaGraphs(GPU).capture(slip)
        assert re.fullmatch(r"operation not permitted when stream is capturing \(test_graphs.py, line \d+\)", str(error.value))
        assert cuda.current is cuda.default[0]
    with pytest.raises(RuntimeError, match=HIDDEN):
        CudaGraphs(GPU).capture(one)


def test_a_warm_up_is_in_order_with_the_stream_of_its_own_device(cuda: Cuda) -> None:
    graphs, seen = CudaGraphs(GPU), []
    graphs.warm_up(lambda: seen.append(cuda.current))
    (side,) = seen
    assert side.device == GPU
    assert side.waited == [cuda.default[1]]
    assert cuda.default[1].waited == [side]
    assert cuda.default[0].waited == []
