"""Training that is killed at any moment, and started again by the same command, ends with the bits of a run that was not.

A moment is a number of calls that Python makes in the main thread, counted by its profiler hook: so it can be drawn by a seed, and lies
anywhere from the first file of the data to the last line of the log. Aimed moments are those at which a file is half written.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import same_threads

from gan_t2i import checkpoint
from gan_t2i.checkpoint import read_tensors
from gan_t2i.data import packing
from gan_t2i.runs import RunFolder, list_runs
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.run import run_training

pytestmark = pytest.mark.slow

MOMENTS = 20
# Saves after the second and the last of four steps: most of the moments lie around a write.
SHORT: dict[str, Any] = {
    "kimg": 0.016,
    "report": {"stats_kimg": 0.004, "grid_kimg": 1, "snapshot_kimg": 0.008, "grid_prompts": 1, "grid_seeds": 1},
}


def train(values: dict[str, Any], place: Path, prepare: Callable[..., None], *arguments: Any) -> None:
    """Train in `place`, with a cache of its own, after `prepare(*arguments)`."""
    same_threads()
    os.environ["GAN_T2I_CACHE"] = str(place / "cache")
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    config = TrainConfig.parse(values)
    prepare(*arguments)
    run_training(config, place / "runs", resume="auto", description="short")
    sys.setprofile(None)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_calls(counted: Path) -> None:
    """Leaves the number of calls so far in a file, at the end of the process."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    import multiprocessing.util

    multiprocessing.util.Finalize(None, lambda: counted.write_text(str(calls)), exitpriority=1)
    sys.setprofile(count)


def die_at_call(number: int) -> None:
    left = number

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal left
        left -= event == "call"
        if left <= 0:
            die()

    sys.setprofile(count)


def die_in_save(number: int) -> None:
    """Half of the n-th safetensors file is written, under its temporary name."""
    save_file, left = checkpoint.save_file, number

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        nonlocal left
        left -= 1
        save_file(tensors, path, metadata)
        if not left:
            os.truncate(path, path.stat().st_size // 2)
            die()

    checkpoint.save_file = half


def die_at_rename(number: int, after: bool) -> None:
    """Just before or after the n-th file or folder gets its name."""
    replace, left = Path.replace, number

    def replace_or_die(path: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if not left and not after:
            die()
        result = replace(path, target)
        if not left:
            die()
        return result

    Path.replace = replace_or_die  # type: ignore[method-assign, assignment]


def die_in_packing(pictures: int) -> None:
    decode_image, left = packing.decode_image, pictures

    def load_or_die(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            die()
        return decode_image(*arguments)

    packing.decode_image = load_or_die


def live() -> None:
    """No harm."""


def code_of(*arguments: Any) -> int | None:
    """The exit code of a process that does `train`; the import of torch is paid for once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gan_t2i.training.run", "sentence_transformers", "sentence_transformers.base.modules", "pytest"])
    process = context.Process(target=train, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


@pytest.fixture(scope="module")
def unbroken(small_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], RunFolder, int]:
    """The config, the run that nobody killed, and how many calls it took."""
    values, place = small_config(**SHORT), tmp_path_factory.mktemp("unbroken")
    assert code_of(values, place, count_calls, place / "calls") == 0
    return values, list_runs(place / "runs")[0], int((place / "calls").read_text())


def whole(folder: RunFolder) -> bool:
    """Read every file under its final name to its end."""
    for path in [*folder.snapshots(), *([folder.state] if folder.state.exists() else [])]:
        read_tensors(path)
    return True


@pytest.mark.parametrize(
    "plan",
    [
        *((die_at_call, number) for number in range(MOMENTS)),
        *((die_in_save, number) for number in (1, 4)),
        *((die_at_rename, number, after) for number, after in ((1, False), (3, True), (5, False), (5, True), (6, False), (6, True))),
        (die_in_packing, 5),
    ],
    ids=lambda plan: "-".join([plan[0].__name__, *map(str, plan[1:])]),
)
def test_it_goes_on_as_if_nothing_had_been(
    plan: tuple[Any, ...],
    unbroken: tuple[dict[str, Any], RunFolder, int],
    assert_same_state: Callable[..., None],
    counted: Callable[[str], Counter[str]],
    tmp_path: Path,
) -> None:
    values, expected, calls = unbroken
    kind = plan[0].__name__
    if plan[0] is die_at_call:
        # One in each twentieth of the run, so that none of its parts is spared.
        plan = (die_at_call, int((plan[1] + random.Random(f"moment {plan[1]}").random()) * 0.98 * calls / MOMENTS))
    assert code_of(values, tmp_path, *plan) == -signal.SIGKILL
    assert all(whole(folder) for folder in list_runs(tmp_path / "runs"))
    assert code_of(values, tmp_path, live) == 0
    folder = list_runs(tmp_path / "runs")[-1]
    assert_same_state(folder, expected)
    assert [path.name for path in folder.snapshots()] == [path.name for path in expected.snapshots()]
    assert not list(folder.path.rglob("*.tmp"))
    assert [record["nimg"] for record in folder.records()] == [4, 8, 12, 16]
    counted("runs killed with SIGKILL, each went on to the same bits")[kind] += 1


def test_a_cache_that_was_deleted_is_made_again(
    unbroken: tuple[dict[str, Any], RunFolder, int], assert_same_state: Callable[..., None], tmp_path: Path
) -> None:
    values, expected, _ = unbroken
    assert code_of(values, tmp_path, die_in_save, 3) == -signal.SIGKILL
    shutil.rmtree(tmp_path / "cache")
    assert code_of(values, tmp_path, live) == 0
    (folder,) = list_runs(tmp_path / "runs")
    assert_same_state(folder, expected)
