"""Runs functions and the command in processes of their own, without paying for the import of torch in each of them."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from gan_t2i.cli.main import main
from gan_t2i.core.distributed import process_group
from gan_t2i.core.errors import GanT2IError


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def together(function: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Any]:
    """Call `function(*arguments)`, of a module's top level, in each process; returns by rank its result, the `GanT2IError` that it raised, or
    None where the process died."""
    context = _context()
    port = free_port()
    processes, ends = [], []
    for rank in range(size):
        end, theirs = context.Pipe(duplex=False)
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
        processes.append(context.Process(target=_work, args=(environment, theirs, function, arguments)))
        processes[-1].start()
        theirs.close()
        ends.append(end)
    try:
        return [_receive(end) for end in ends]
    finally:
        for process in processes:
            process.join(60)
            process.kill()


def start_command(*arguments: object, log: Path) -> ForkServerProcess:
    """Start the `gan-t2i` command, whose output goes to `log`."""
    process = _context().Process(target=_command, args=(dict(os.environ), list(map(str, arguments)), log))
    process.start()
    return process


def same_threads() -> None:
    """Use as many threads as pytest's own process: the last bits of sums depend on their number."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def _command(environment: dict[str, str], arguments: list[str], log: Path) -> None:
    os.environ.update(environment)
    same_threads()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["gan-t2i", *arguments]
    main()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gan_t2i.training.run", "sentence_transformers", "sentence_transformers.base.modules", "pytest"])
    return context


def _work(environment: dict[str, str], end: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with process_group("cpu"):
            result = function(*arguments)
    except GanT2IError as error:
        result = error
    # tensors as numpy arrays: torch would share their memory, which ends with this process
    end.send(result)


def _receive(end: Connection) -> Any:
    assert end.poll(120), "a process hangs"
    try:
        return end.recv()
    except EOFError:
        return None
