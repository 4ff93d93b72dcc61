"""How the parts of a step become one: those that accumulate in this process, and those of the other processes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gan_t2i.core.distributed import average, world_size


class GradientSync:
    """Gradients add up over parts by themselves; running means in buffers (w_avg) start each part alike and end as the mean of all.

    Along with the gradients goes a word: whether a process was asked to stop. All then stop after the same step.

    Args:
        networks: whose gradients and buffers these are.
        device: where they are.
    """

    def __init__(self, networks: list[nn.Module], device: torch.device) -> None:
        self.networks = networks
        self.device = device
        self.asked_to_stop: Callable[[], bool] = lambda: False
        self._sent: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def begin(self) -> None:
        """Before the first part."""
        self._buffers = [buffer for network in self.networks for buffer in network.buffers()]
        self._before = [buffer.clone() for buffer in self._buffers]
        self._sums = [torch.zeros_like(buffer) for buffer in self._buffers]

    def end_part(self, parts: int) -> None:
        """After each of this process's `parts`."""
        for buffer, before, total in zip(self._buffers, self._before, self._sums, strict=True):
            total += buffer / parts
            buffer.copy_(before)

    def finish(self) -> None:
        """After the last part: the means of gradients and buffers over all processes, in one all-reduce. A parameter without a gradient
        stays so: whether it has one depends on the config and on nimg, and is the same everywhere."""
        for buffer, total in zip(self._buffers, self._sums, strict=True):
            buffer.copy_(total)
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
        """Whether to stop now, asked once after each step. Of several processes, all answer for the step before: its word has arrived on the
        CPU by now, so that a GPU is not waited for."""
        if world_size() == 1:
            return self.asked_to_stop()
        if len(self._sent) < 2:
            return False
        word, copied = self._sent.pop(0)
        if copied:
            copied.synchronize()
        return word.item() > 0

    def stopping_now(self) -> bool:
        """Whether to stop before another step. Of several processes none knows yet what the others were asked, so all take that step."""
        return world_size() == 1 and self.asked_to_stop()
