"""A training step as CUDA graphs: the GPU replays it without Python, which would launch ten thousand kernels one by one.

Three graphs share one pool of memory: the gradients with the penalty, those without it, and the update; the all-reduce over processes runs
between them.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from gan_t2i.core.graphs import Backend, Replay, reason_of
from gan_t2i.losses.inputs import StepInputs
from gan_t2i.training.networks import Networks
from gan_t2i.training.sync import GradientSync

Metrics = dict[str, Tensor]

WARM_UPS = 3  # steps before a capture, in which libraries choose their kernels and take their workspaces
ALIGNMENT = 256  # bytes
# Sums are taken in any order unless the run is deterministic; so two eager steps differ as well.
TOLERANCE = {"rtol": 0.02, "atol": 1e-3}
COMPARED = ("Loss/G/", "Loss/D/", "Gradient/")  # means of signs may jump


class CaptureError(Exception):
    """A step cannot be captured; the message is the reason, as part of a sentence."""


class Step(Protocol):
    """The parts of a `TrainStep` that are captured: tensor code alone."""

    networks: Networks
    sync: GradientSync
    device: torch.device

    def gradients(self, parts: Sequence[StepInputs], with_penalty: bool) -> Metrics: ...

    def update(self) -> Metrics: ...


class CapturedStep:
    """Replays the gradients and the update of a step; captures what it has not captured yet.

    The step is not kept, so that it and its graphs are freed with their run, and not when Python next looks for cycles.
    """

    def __init__(self, backend: Backend, *, exact: bool) -> None:
        self.backend, self.exact = backend, exact
        self.paused = False
        """Run eagerly, for what counts or times the operations."""
        self.forget()

    def forget(self) -> None:
        """Capture everything again: some tensors, such as Adam's moments, are not where they were."""
        self._gradients: dict[bool, tuple[InputBuffers, Replay]] = {}
        self._update: Replay | None = None

    def __call__(self, step: Step, parts: Sequence[StepInputs], with_penalty: bool) -> Metrics:
        """Run a step on the inputs of its micro-batches, on the CPU; raises `CaptureError`, and has moved nothing then."""
        if not self.paused and with_penalty not in self._gradients:
            self._capture(step, parts, with_penalty)
        buffers, gradients = self._gradients.get(with_penalty, (None, None))
        if self.paused or buffers is None or gradients is None or self._update is None or not buffers.fit(parts):
            metrics = step.gradients(to_device(parts, step.device), with_penalty)
            step.sync.reduce()
            return metrics | step.update()
        buffers.fill(parts)
        metrics = gradients()
        step.sync.reduce()
        return metrics | self._update()

    def _capture(self, step: Step, parts: Sequence[StepInputs], with_penalty: bool) -> None:
        """Capture the gradients, and the update with the first of them, after a warm-up, and compare a replay with an eager step."""
        buffers = InputBuffers(parts, step.device)
        buffers.fill(parts)

        def run() -> Metrics:
            return step.gradients(buffers.inputs, with_penalty) | step.update()

        try:
            for _ in range(WARM_UPS):
                with unmoved(step.networks):
                    self.backend.warm_up(run)
            with unmoved(step.networks):
                expected = run()
            gradients = self.backend.capture(lambda: step.gradients(buffers.inputs, with_penalty))
            update = self._update or self.backend.capture(step.update)
            with unmoved(step.networks):
                found = gradients() | update()
        except RuntimeError as error:
            raise CaptureError(reason_of(error)) from error
        if wrong := differing(expected, found, exact=self.exact):
            raise CaptureError(f"a replay gave other numbers than the step itself ({', '.join(wrong)})")
        self._gradients[with_penalty], self._update = (buffers, gradients), update


def differing(expected: Metrics, found: Metrics, *, exact: bool) -> list[str]:
    """Return the names of losses and norms that differ: by a bit if `exact`, else by more than `TOLERANCE`."""
    compared = [name for name in expected if name.startswith(COMPARED)]
    tolerance = {"rtol": 0.0, "atol": 0.0} if exact else TOLERANCE
    return [name for name in compared if not torch.allclose(found[name].float(), expected[name].float(), **tolerance, equal_nan=True)]


@contextlib.contextmanager
def unmoved(networks: Networks) -> Iterator[None]:
    """Put weights, buffers, moments and averages back where they lie, after the ``with``; new moments become zero, as Adam makes them."""
    before = {id(tensor): (tensor, tensor.clone()) for tensor in _moving(networks)}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor in _moving(networks):
                if id(tensor) not in before:
                    tensor.zero_()
            for tensor, value in before.values():
                tensor.copy_(value)


def _moving(networks: Networks) -> Iterator[Tensor]:
    """Yield every tensor that a step moves; its gradients are zero before and after it."""
    for network in (networks.G, networks.D, networks.G_ema):
        yield from chain(network.parameters(), network.buffers())
    for optimizer in (networks.g_optimizer, networks.d_optimizer):
        for moments in optimizer.state.values():
            yield from moments.values()


class InputBuffers:
    """The inputs of a step at fixed addresses on the device, in one block, so that one copy fills them.

    inputs: the micro-batches' inputs, as views of the block.
    """

    def __init__(self, parts: Sequence[StepInputs], device: torch.device) -> None:
        self._spans: list[slice] = []
        end = 0
        for tensor in tensors_in(parts):
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + tensor.nbytes
            self._spans.append(slice(start, end))
        self._block = torch.empty(end, dtype=torch.uint8, device=device)
        spans = iter(self._spans)
        self.inputs: list[StepInputs] = map_tensors(lambda tensor: self._view(self._block, next(spans), tensor), list(parts))

    @staticmethod
    def _view(block: Tensor, span: slice, like: Tensor) -> Tensor:
        return block[span].view(like.dtype).view(like.shape)

    def fit(self, parts: Sequence[StepInputs]) -> bool:
        """Return True if inputs have the types and shapes of the buffers."""
        ours, theirs = ([(x.dtype, x.shape) for x in tensors_in(each)] for each in (self.inputs, parts))
        return ours == theirs

    def fill(self, parts: Sequence[StepInputs]) -> None:
        """Copy inputs on the CPU into the buffers, without waiting for the device."""
        staging = torch.empty(len(self._block), dtype=torch.uint8, pin_memory=self._block.is_cuda)
        for tensor, span in zip(tensors_in(parts), self._spans, strict=True):
            self._view(staging, span, tensor).copy_(tensor)
        self._block.copy_(staging, non_blocking=True)


def to_device(parts: Sequence[StepInputs], device: torch.device) -> list[StepInputs]:
    """Return inputs on the device; a GPU fetches them while it works."""
    if device.type == "cpu":
        return list(parts)
    pinned = device.type == "cuda"
    moved: list[StepInputs] = map_tensors(lambda x: (x.pin_memory() if pinned else x).to(device, non_blocking=pinned), list(parts))
    return moved


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return `value`, made of dataclasses, mappings and lists, with `function` of each of its tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, each) for key, each in value.items()}
    if isinstance(value, list):
        return [map_tensors(function, each) for each in value]
    return replace(value, **{part.name: map_tensors(function, getattr(value, part.name)) for part in fields(value)})


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of such a value, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, list(value))
    return found
