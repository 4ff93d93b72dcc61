"""Floating-point operations: count those of a computation, and measure how fast this machine does them."""

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
"""Approximate time for which a call is repeated: the clock is not exact enough for a single call of a few microseconds."""


@dataclass(frozen=True)
class Layout:
    """Shape, strides, type and device of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def fresh(self) -> Tensor:
        """Return a tensor of this layout, filled with normal noise; an expanded one is expanded again."""
        elements = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True)) if math.prod(self.shape) else 0
        noise = torch.randn(elements, device=self.device).to(self.dtype)
        return noise.as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Call:
    """An operator with the layouts of its tensors, and the operations that torch counts for it."""

    operator: Any
    arguments: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]
    flop: int

    @property
    def kind(self) -> str:
        """Convolution or matmul, and the precision of its factors, e.g. "convolution bfloat16"."""
        name = "convolution" if "conv" in str(self.operator) else "matmul"
        dtype = next(argument.dtype for argument in self.arguments if isinstance(argument, Layout))
        return f"{name} {str(dtype).removeprefix('torch.')}"


class FlopCounter(TorchDispatchMode):
    """Counts floating-point operations by torch's own formulas. (FlopCounterMode fails at penalties: it hooks modules, and those hooks
    do not support autograd.grad.)

    `calls` counts the calls of each operator with tensors of each layout, those of autograd and autocast included.
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
    """Return an operator's arguments as hashable values, with layouts for tensors."""
    if isinstance(value, Tensor):
        return Layout(tuple(value.shape), value.stride(), value.dtype, value.device)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _filled(value: Any) -> Any:
    """Return the arguments with new tensors for layouts."""
    if isinstance(value, Layout):
        return value.fresh()
    return [_filled(part) for part in value] if isinstance(value, tuple) else value


@torch.no_grad()
def seconds_alone(call: Call) -> float:
    """Return the mean time of the call alone, on new tensors, over `TIMED_SECONDS` after a warm-up."""
    arguments, named = [_filled(argument) for argument in call.arguments], {key: _filled(value) for key, value in call.named}
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))

    def repeated(times: int) -> float:
        return seconds_of(lambda: [call.operator(*arguments, **named) for _ in range(times)], device)

    repeated(1)  # chooses the kernel
    times = min(1000, math.ceil(TIMED_SECONDS / max(repeated(1), 1e-9)))
    return repeated(times) / times


@dataclass(frozen=True)
class Ceiling:
    """The operations of a set of calls, and the time that they take when each is run alone."""

    gflop: float
    seconds: float
    rate: float
    """Speed in GFLOP/s."""


def ceiling(counts: Mapping[Call, float], seconds: Mapping[Call, float]) -> Ceiling:
    """Return the ceiling of `counts` calls that take `seconds` each."""
    gflop = sum(call.flop * count for call, count in counts.items()) / 1e9
    together = sum(seconds[call] * count for call, count in counts.items())
    return Ceiling(gflop, together, gflop / together if together else 0.0)


@functools.cache
def convolution_rate(device: torch.device, precision: str) -> float:
    """Return the GFLOP/s of a 3x3 convolution, 128 channels at 32x32, forward and backward, at "bf16", "float32" or "auto": a median of ten."""
    convolution = nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last).to(device)
    x = torch.randn(16, 128, 32, 32, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()

    def both_ways() -> None:
        with autocast(device, precision):
            y = convolution(x)
        y.backward(torch.ones_like(y))

    flop = 3 * 2 * x.shape[0] * 32 * 32 * convolution.weight.numel()  # forward, and two products of the same size backward
    return flop / median_seconds(both_ways, 10, device) / 1e9


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Return the GFLOP/s of the product of two square matrices, a median of five."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, 5, device) / 1e9


def median_seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the median time of `work`, after two warm-up calls in which kernels are chosen and memory is allocated."""
    return statistics.median([seconds_of(work, device) for _ in range(repeats + 2)][2:])


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the time of `work` until the device has done it."""
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start
