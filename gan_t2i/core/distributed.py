"""Data-parallel training in several processes. With one process, everything here is the identity.

torchrun starts the processes and sets their ranks in the environment. Gradients and metrics on a GPU travel by nccl, everything else by gloo,
which also notices at once when a process is gone.
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

# Longer than packing and encoding a large data set, which one process does while the others wait. A process that dies is noticed at once, by
# its closed connection or by torchrun.
TIMEOUT = timedelta(hours=24)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, if it did, within ``with``; `device` is the config's.

    Raises `UsageError` where the environment or the device does not allow several processes. After an error the group is not destroyed: nccl
    would wait for processes that wait for this one, and this one is about to end anyway.
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
    _wait_for_all()  # a process that fails at once would be missed by others that are still joining
    yield
    _wait_for_all()  # torchrun ends all processes once one fails or gets a signal, and rank 0 may still be saving
    dist.destroy_process_group()


def _takes_gpu(device: str) -> bool:
    """True if each process has its own GPU; raises `UsageError` for a device that several processes cannot use."""
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
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """True for the process that writes files and messages."""
    return rank() == 0


def own_rows(count: int) -> slice:
    """Return this process's share of the `count` rows of a batch, a multiple of the world size."""
    share = count // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each of `tensors` (float, on one device) by its mean over all processes, in one all-reduce of a flat copy."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    with _gone_is_an_error():
        dist.all_reduce(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(mean.view(tensor.shape))


def from_first(value: T) -> T:
    """Return rank 0's `value` in every process."""
    if world_size() == 1:
        return value
    values = [value]
    with _gone_is_an_error():
        dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


@contextlib.contextmanager
def first_of_node_first() -> Iterator[None]:
    """Let the first process of each node run the ``with`` alone, and the others after it, so that they find what it cached."""
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
    """Turn a broken connection, which is all that a process sees of another one's end, into one sentence."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise GanT2IError(
            f"process {os.environ['RANK']} cannot reach the others of this run ({reason}); the last save is kept: the same command resumes"
        ) from error
