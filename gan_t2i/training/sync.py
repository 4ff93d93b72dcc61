"""Gradient accumulation over micro-batches, and the all-reduce over processes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gan_t2i.core.distributed import average, world_size


class GradientSync:
    """Averages gradients and buffers of networks over micro-batches and processes.

    Gradients add up over micro-batches by themselves; running means in buffers (w_avg) start each micro-batch alike and end as the mean of all.
    A flag travels with the gradients, set where a process was asked to stop, so that all stop after the same step.
    """

    def __init__(self, networks: list[nn.Module], device: torch.device) -> None:
        self.networks = networks
        self.device = device
        self.asked_to_stop: Callable[[], bool] = lambda: False
        self._sent: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def begin(self) -> None:
        """Start a step, before the first micro-batch."""
        self._buffers = [buffer for network in self.networks for buffer in network.buffers()]
        self._before = [buffer.clone() for buffer in self._buffers]
        self._sums = [torch.zeros_like(buffer) for buffer in self._buffers]

    def end_part(self, parts: int) -> None:
        """End one of this process's `parts` micro-batches."""
        for buffer, before, total in zip(self._buffers, self._before, self._sums, strict=True):
            total += buffer / parts
            buffer.copy_(before)

    def end(self) -> None:
        """End the step's last micro-batch."""
        for buffer, total in zip(self._buffers, self._sums, strict=True):
            buffer.copy_(total)

    def reduce(self) -> None:
        """Average gradients and buffers over all processes, in one all-reduce.

        A parameter without a gradient stays so: which ones have none depends on the config and on nimg alone.
        """
        if world_size() == 1:
            return
        gradients = [p.grad for network in self.networks for p in network.parameters() if p.grad is not None]
        asked = torch.full((1,), float(self.asked_to_stop()), device=self.device)
        average([*gradients, *self._buffers, asked])
        copied = torch.cuda.Event() if self.device.type == "cuda" else None
        self._sent.append((asked.to("cpu", non_blocking=True), copied))
        if copied:
            copied.record()

    def stopping(self) -> bool:
        """Return True if the run stops now; call it once after each step.

        Several processes answer for the step before, whose flag has reached the CPU by now, so that nothing waits for a GPU.
        """
        if world_size() == 1:
            return self.asked_to_stop()
        if len(self._sent) < 2:
            return False
        flag, copied = self._sent.pop(0)
        if copied:
            copied.synchronize()
        return flag.item() > 0

    def stopping_now(self) -> bool:
        """Return True if the run stops before another step. Several processes take that step: none knows the others' flags yet."""
        return world_size() == 1 and self.asked_to_stop()
