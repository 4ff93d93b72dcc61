"""Several processes that train as one: who this one is, and what they tell each other. Alone, everything here is the identity.

torchrun starts the processes and tells each of them, in its environment, which one it is. Gradients and metrics on a GPU travel by nccl,
everything else by gloo, which also notices at once when a process is gone.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

# Optimizers import it. Were a group there by then, it would be among its default arguments, and the group's threads would outlive it.
import torch.distributed.nn.functional
from torch import Tensor

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.log import PACKAGE

T = TypeVar("T")

NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

# As long as packing and encoding a large data set may take, which one process does while the others wait. One that dies is noticed at
# once, by its closed connection or by torchrun.
TIMEOUT = timedelta(hours=24)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Within ``with``, this process is one of those that torchrun started, if it did; `device` is the config's.

    Raises `UsageError` where the environment, or the device, is not one for several processes. After an error the group is left as it is:
    to take nccl down would wait for processes that wait for this one, and the process is about to end anyway.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal():
        raise UsageError(f"WORLD_SIZE is {size!r}, not a number of processes: start several processes with torchrun, or unset it")
    if int(size) == 1:
        yield
        return
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise UsageError(f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set: start several processes with torchrun, or unset it")
    on_gpu = _takes_gpu(device)
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _gone_is_an_error():
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    if not is_first():
        PACKAGE.setLevel(logging.WARNING)
    _wait_for_all()  # one that is refused at once, and leaves, would else be missed by others that are still joining
    yield
    _wait_for_all()  # torchrun ends all processes once one has left with an error, or by a signal, and rank 0 may still be saving
    dist.destroy_process_group()


def _takes_gpu(device: str) -> bool:
    """Whether each of several processes has a GPU of its own; raises `UsageError` for devices that they cannot share."""
    if device == "auto" and not torch.cuda.is_available() and torch.backends.mps.is_available():
        raise UsageError("several processes train on cpu or cuda, and auto is mps here: set device=cpu")
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device {device!r} is for one process; of several, each takes its own: set device to auto, cpu or cuda")
    if device == "cpu" or not torch.cuda.is_available():  # cuda that is not there is refused by pick_device
        return False
    here, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if here >= gpus:
        raise UsageError(f"process {here} of this node has no GPU, there are {gpus}: give torchrun --nproc-per-node {gpus}, or set device=cpu")
    return True


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the one that writes and speaks."""
    return rank() == 0


def own_rows(count: int) -> slice:
    """This process's share of the `count` rows of a batch, which is a multiple of the world size."""
    share = count // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def average(tensors: Sequence[Tensor]) -> None:
    """Put the mean over all processes into each of `tensors` (float, on one device), by one all-reduce of one flat copy."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    with _gone_is_an_error():
        dist.all_reduce(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(mean.view(tensor.shape))


def from_first(value: T) -> T:
    """Rank 0's `value`, on all; the others' is ignored."""
    if world_size() == 1:
        return value
    values = [value]
    with _gone_is_an_error():
        dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


@contextlib.contextmanager
def first_of_node_first() -> Iterator[None]:
    """The first process of each node goes through the ``with`` alone, the others after it: they find what it put into the cache."""
    first = world_size() == 1 or os.environ["LOCAL_RANK"] == "0"
    if not first:
        _wait_for_all()
    yield
    if first:
        _wait_for_all()


def _wait_for_all() -> None:
    average([torch.zeros(1)])


@contextlib.contextmanager
def _gone_is_an_error() -> Iterator[None]:
    """One sentence for a connection that broke, which is all that a process sees of another one's end."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise GanT2IError(
            f"process {os.environ['RANK']} cannot reach the others of this run ({reason}); what was saved last stays: the same command goes on"
        ) from error
