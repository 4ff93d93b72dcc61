"""Floating-point operations: which ones a computation does, and how fast this machine does them."""

import functools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gan_t2i.core.runtime import autocast, synchronize

TIMED_SECONDS = 2e-3
"""A call is repeated for about so long: one of a few microseconds is shorter than the clock is true."""


@dataclass(frozen=True)
class Layout:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def fresh(self) -> Tensor:
        """A tensor of this layout, filled with normal noise; one that was expanded is again."""
        elements = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True)) if math.prod(self.shape) else 0
        noise = torch.randn(elements, device=self.device).to(self.dtype)
        return noise.as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Call:
    """One operator with the layouts of its tensors, and what torch counts for it."""

    operator: Any
    arguments: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]
    flop: int

    @property
    def kind(self) -> str:
        """convolution or matmul, and the precision of its factors: e.g. "convolution bfloat16"."""
        name = "convolution" if "conv" in str(self.operator) else "matmul"
        dtype = next(argument.dtype for argument in self.arguments if isinstance(argument, Layout))
        return f"{name} {str(dtype).removeprefix('torch.')}"


class FlopCounter(TorchDispatchMode):
    """Counts floating-point operations by torch's own formulas. (FlopCounterMode fails at penalties: it hooks modules, and those hooks
    do not take autograd.grad.)

    calls: how often each operator was called with tensors of each layout; autograd's and autocast's own calls are among them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[Call] = Counter()

    @property
    def total(self) -> int:
        return sum(call.flop * count for call, count in self.calls.items())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        result = func(*args, **named)
        if func.overloadpacket in flop_registry:
            flop = flop_registry[func.overloadpacket](*args, **named, out_val=result)
            self.calls[Call(func, _frozen(args), tuple((key, _frozen(value)) for key, value in named.items()), flop)] += 1
        return result


def _frozen(value: Any) -> Any:
    """Arguments of an operator as something that hashes."""
    if isinstance(value, Tensor):
        return Layout(tuple(value.shape), value.stride(), value.dtype, value.device)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _filled(value: Any) -> Any:
    """The same with tensors for layouts."""
    if isinstance(value, Layout):
        return value.fresh()
    return [_filled(part) for part in value] if isinstance(value, tuple) else value


@torch.no_grad()
def seconds_alone(call: Call) -> float:
    """How long the call takes when nothing else is done: on tensors of its own, warm, the mean over `TIMED_SECONDS`."""
    arguments, named = [_filled(argument) for argument in call.arguments], {key: _filled(value) for key, value in call.named}
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))

    def repeated(times: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(times):
            call.operator(*arguments, **named)
        synchronize(device)
        return time.perf_counter() - start

    repeated(1)  # chooses the kernel
    times = min(1000, math.ceil(TIMED_SECONDS / max(repeated(1), 1e-9)))
    return repeated(times) / times


@dataclass(frozen=True)
class Ceiling:
    """What a machine reaches in a set of calls, each alone: their operations, and the seconds that these alone take."""

    gflop: float
    seconds: float

    @property
    def rate(self) -> float:
        """GFLOP/s."""
        return self.gflop / self.seconds if self.seconds else 0.0


def ceiling(counts: Mapping[Call, int], seconds: Mapping[Call, float]) -> Ceiling:
    """Of `counts` calls that take `seconds` each."""
    return Ceiling(sum(call.flop * count for call, count in counts.items()) / 1e9, sum(seconds[call] * n for call, n in counts.items()))


@functools.cache
def convolution_rate(device: torch.device, precision: str) -> float:
    """GFLOP/s of a 3x3 convolution, 128 channels at 32x32, forward and backward, at "bf16", "float32" or "auto". Median of ten, taken once."""
    convolution = nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last).to(device)
    x = torch.randn(16, 128, 32, 32, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()

    def both_ways() -> None:
        with autocast(device, precision):
            y = convolution(x)
        y.backward(torch.ones_like(y))

    flop = 3 * 2 * x.shape[0] * 32 * 32 * convolution.weight.numel()  # forward, and two products of the same size backward
    return flop / median_seconds(both_ways, 10, device) / 1e9


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """GFLOP/s of the product of two square matrices. Median of five."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, 5, device) / 1e9


def median_seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The median time of `work`, after two calls that are not timed: kernels are chosen and memory is taken in the first."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])
