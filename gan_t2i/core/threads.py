"""Threads of torch: how they wait, and how many there are, from the cores that this process may use and other programs leave free.

Nothing here loads torch, which reads its environment once, when it is loaded. A program that imports the package decides for itself; only the
command calls `begin` and `settle`.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from gan_t2i.core.words import counted

log = logging.getLogger(__name__)

# By default an idle thread spins for milliseconds before it sleeps. Where another program needs its core, all others wait for it: two threads
# beside one busy process fell to a thirtieth of their speed. To sleep at once (OMP_WAIT_POLICY=PASSIVE) costs up to half of the speed of quiet
# cores that compute in bfloat16, because waking takes as long as a small layer. So they spin for some microseconds.
SLEEP_SOON = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}  # rounds in GNU's runtime, milliseconds in Intel's and LLVM's
HOW_TO_WAIT = {*SLEEP_SOON, "OMP_WAIT_POLICY"}
SHORTEST = 0.1  # seconds; the system counts time in hundredths


def cores(busy: float = 0.0) -> int:
    """Return the number of cores that this process may use, at least one: those it may run on, less `busy` ones, and at most the share of
    time that its control groups allow."""
    return max(1, math.floor(min(len(_own_cores()) - busy, _quota()) + 0.5))


_began: tuple[float, float] | None = None
_may_choose = False


def begin() -> None:
    """Set how the threads wait and how many there may be, before torch is loaded; what the user has set stays."""
    global _began, _may_choose
    if "torch" in sys.modules:
        return
    if not HOW_TO_WAIT & os.environ.keys():
        os.environ.update(SLEEP_SOON)
    _began, _may_choose = _clock_and_others(), "OMP_NUM_THREADS" not in os.environ
    if _may_choose and cores() < len(_own_cores()):  # of control groups torch knows nothing
        os.environ["OMP_NUM_THREADS"] = str(cores())


def busy_cores() -> float:
    """Return how many of the cores other programs have kept busy since `begin`; 0 where that is not known."""
    if _began is None:
        return 0.0
    seconds, work = (now - then for now, then in zip(_clock_and_others(), _began, strict=True))
    return max(0.0, work / seconds) if seconds > SHORTEST else 0.0


def settle() -> bool:
    """Take only as many threads as cores were free since `begin`, while torch was loaded; returns False where the user has set the number."""
    if not _may_choose:
        return False
    import torch

    free = cores(busy_cores())
    if free < torch.get_num_threads():
        torch.set_num_threads(free)
        log.info(f"{describe_load()}: {counted(free, 'thread')} in training, or what OMP_NUM_THREADS says")
    return True


def describe_load() -> str:
    """Return how many cores other programs keep busy, as half a sentence."""
    return f"other programs keep {busy_cores():.1f} of {len(_own_cores())} cores busy"


def _own_cores() -> set[int]:
    # a container or a scheduler may allow fewer cores than the machine has
    return os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))


def _clock_and_others() -> tuple[float, float]:
    """Return the time, and the seconds that other programs have worked on this process's cores, by /proc/stat; 0 on other systems.

    Programs of a lower priority do not count: they give way.
    """
    names = {f"cpu{number}" for number in _own_cores()}
    rows = [list(map(int, values)) for name, *values in map(str.split, _lines(Path("/proc/stat"))) if name in names]
    is_lowered = os.getpriority(os.PRIO_PROCESS, 0) > 0
    # user, niced, system, idle, waiting, interrupts
    ticks = sum(user + niced * is_lowered + system + sum(interrupts[:2]) for user, niced, system, _, _, *interrupts in rows)
    own = os.times()
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK") - own.user - own.system if rows else 0.0


def _quota(root: Path = Path("/")) -> float:
    """Return the cores' worth of time that control groups of version 1 or 2 allow this process; infinity without a limit."""
    limits = [math.inf]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.strip().split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        # in a container, the group's path may be the host's, and the mount the group itself
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            limits += _limits(mount / group.relative_to("/"))
    return min(limits)


def _limits(group: Path) -> Iterator[float]:
    quotas = [line.split() for line in _lines(group / "cpu.max")]
    quotas.append([*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")])
    for values in quotas:
        if len(values) == 2 and values[0].strip().isdecimal():  # else "max", or -1
            yield int(values[0]) / int(values[1])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
