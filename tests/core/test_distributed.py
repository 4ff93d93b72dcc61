"""Alone, nothing is exchanged; together, everyone gets the mean, and the first one's word."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import free_port, together

from gan_t2i.core import distributed
from gan_t2i.core.errors import GanT2IError, UsageError


def test_alone_everything_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tensor = torch.tensor([1.0, 2.0])
    with distributed.process_group("auto"), distributed.first_of_node_first():
        distributed.average([tensor])
        assert (distributed.world_size(), distributed.rank(), distributed.is_first()) == (1, 0, True)
        assert distributed.own_rows(6) == slice(0, 6)
        assert distributed.from_first("word") == "word"
    assert tensor.tolist() == [1, 2]


def exchange(folder: Path) -> tuple[object, ...]:
    rank = distributed.rank()
    scalar = torch.tensor(float(rank))
    picture = torch.arange(24.0).view(1, 2, 3, 4).mul(rank).contiguous(memory_format=torch.channels_last)
    distributed.average([scalar, picture])
    with distributed.first_of_node_first():
        if rank == 0:
            time.sleep(0.2)
        order = len(list(folder.iterdir()))
        (folder / str(rank)).touch()
    word = distributed.from_first(f"of {rank}")
    return distributed.world_size(), rank, distributed.own_rows(6), scalar.item(), picture.tolist(), order > 0, word


def test_three_together(tmp_path: Path) -> None:
    picture = torch.arange(24.0).view(1, 2, 3, 4).tolist()
    expected = [(3, rank, slice(2 * rank, 2 * rank + 2), 1.0, picture, rank > 0, "of 0") for rank in range(3)]
    assert together(exchange, tmp_path, size=3) == expected


TRAINS = """
import os, torch
from pathlib import Path
from gan_t2i.core.distributed import average, process_group

with process_group("cpu"):
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.sum().backward()
    average([weight.grad])
    torch.optim.Adam([weight]).step()
print(*sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads have their names in /proc")
def test_no_thread_of_the_group_outlives_it() -> None:
    """One that still lets go of a tensor while Python ends aborts the process, and torchrun calls a finished run failed."""
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAINS]
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True) for rank in "01"
    ]
    names = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all("python" in line and "gloo" not in line for line in names)


def leave() -> float:
    if distributed.rank() == 1:
        os._exit(9)
    tensor = torch.zeros(1)
    distributed.average([tensor])
    return tensor.item()


def test_a_process_that_is_gone_is_an_error_in_one_sentence() -> None:
    first, second = together(leave)
    assert second is None
    assert isinstance(first, GanT2IError)
    assert not isinstance(first, UsageError)
    assert str(first).startswith("process 0 cannot reach the others of this run (")
    assert "\n" not in str(first)


def refusal(device: str = "cpu") -> str:
    with pytest.raises(UsageError) as error, distributed.process_group(device):
        pass
    return str(error.value)


def test_an_environment_that_is_not_torchruns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.NEEDED:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_PORT")
    monkeypatch.delenv("RANK")
    assert refusal() == "WORLD_SIZE is 2, but RANK, MASTER_PORT is not set: start several processes with torchrun, or unset it"
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert refusal() == "WORLD_SIZE is 'two', not a number of processes: start several processes with torchrun, or unset it"


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.NEEDED:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert refusal("cuda:1") == "device 'cuda:1' is for one process; of several, each takes its own: set device to auto, cpu or cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    for device in ("auto", "cuda"):
        assert refusal(device).startswith("process 2 of this node has no GPU, there are 2: give torchrun --nproc-per-node 2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert refusal("auto") == "several processes train on cpu or cuda, and auto is mps here: set device=cpu"
