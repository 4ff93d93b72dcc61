"""How torch's threads wait and how many there are: the user's settings, control groups, and other programs' load."""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gan_t2i.core import threads


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The empty environment of a process that has not loaded torch, on two cores."""
    values: dict[str, str] = {}
    monkeypatch.setattr(threads.os, "environ", values)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "_own_cores", lambda: {0, 1})
    monkeypatch.setattr(threads, "_quota", lambda: math.inf)
    monkeypatch.setattr(threads, "_began", None)
    monkeypatch.setattr(threads, "_may_choose", False)
    return values


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_sleep_soon_unless_the_user_says_how_they_wait(environment: dict[str, str]) -> None:
    environment.clear()  # of pytest's own
    threads.begin()
    assert environment == {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}
    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "1000"), ("KMP_BLOCKTIME", "200")):
        environment.clear()
        environment[name] = value
        threads.begin()
        assert environment == {name: value}


def test_what_was_loaded_before_is_left_alone(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    environment.clear()  # of pytest's own
    threads.begin()
    assert environment == {}
    assert not threads.settle()


def test_a_control_group_limits_the_threads_unless_the_user_does(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_quota", lambda: 1.0)
    threads.begin()
    assert environment["OMP_NUM_THREADS"] == "1"
    environment["OMP_NUM_THREADS"] = "2"
    threads.begin()
    assert environment["OMP_NUM_THREADS"] == "2"


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("busy", "left"), [(0.0, 2), (0.4, 2), (0.6, 1), (1.0, 1), (2.0, 1)])
def test_as_many_threads_as_cores_are_free(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, busy: float, left: int) -> None:
    clock = iter([100.0, *[110.0] * 9])
    monkeypatch.setattr(threads, "_clock_and_others", lambda: ((now := next(clock)), busy * now))
    threads.begin()
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert threads.settle()
    assert torch.get_num_threads() == left


@pytest.mark.usefixtures("two_threads")
def test_the_user_s_number_stays_on_busy_cores(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    environment["OMP_NUM_THREADS"] = "2"
    threads.begin()
    monkeypatch.setattr(threads, "busy_cores", lambda: 2.0)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert not threads.settle()
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_the_load_of_others_is_without_our_own() -> None:
    """Not more than the cores have done, and not less than nothing, however busy this process was itself."""
    before = threads._clock_and_others()
    while os.times().user + os.times().system == (own := os.times().user + os.times().system):
        pass
    after = threads._clock_and_others()
    assert own > 0
    # each of the clocks ticks in hundredths
    assert -0.03 <= after[1] - before[1] <= (after[0] - before[0]) * (os.cpu_count() or 1) + 0.03


CGROUPS = {
    "none": ({"proc/self/cgroup": "0::/\n"}, math.inf),
    "not there": ({}, math.inf),
    "v2, no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
    "v2": ({"proc/self/cgroup": "0::/user/a\n", "sys/fs/cgroup/user/a/cpu.max": "150000 100000\n"}, 1.5),
    "v2, by a group above": (
        {
            "proc/self/cgroup": "0::/user/a\n",
            "sys/fs/cgroup/user/a/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user/cpu.max": "100000 50000\n",
        },
        2.0,
    ),
    "v2 in a container, by the host's path": ({"proc/self/cgroup": "0::/docker/b\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
    "v1": (
        {
            "proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/box:1\n1:name=systemd:/\n",
            "sys/fs/cgroup/cpu/box:1/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/box:1/cpu.cfs_period_us": "100000\n",
        },
        3.0,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": "4:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        math.inf,
    ),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_the_share_of_time_that_control_groups_allow(name: str, tmp_path: Path) -> None:
    files, quota = CGROUPS[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert threads._quota(tmp_path) == quota
