"""Real trainings that go wrong: the monitor sees it, goes back so often, and stops with a sentence that says what it saw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gan_t2i.checkpoint import load_snapshot, read_tensors
from gan_t2i.core.errors import GanT2IError
from gan_t2i.runs import list_runs
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.monitor import SIGNS
from gan_t2i.training.run import run_training

pytestmark = pytest.mark.slow

# No penalty, so that nothing holds D back.
WILD = {"penalty": {"r1_gamma": 0.0, "r2_gamma": 0.0}, "precision": "float32"}


@pytest.mark.parametrize(
    ("rates", "seen"),
    [
        ({"g_lr": 0.02, "d_lr": 0.02}, "outputs have exploded"),
        ({"g_lr": 1e-9, "d_lr": 3e-3}, SIGNS),
    ],
    ids=["both rates too high", "D wins"],
)
def test_a_run_that_goes_wrong_stops(
    small_config: Callable[..., Any], tmp_path: Path, rates: dict[str, float], seen: str, said: list[str]
) -> None:
    report = {"stats_kimg": 0.04, "grid_kimg": 100, "snapshot_kimg": 0.04, "grid_prompts": 1, "grid_seeds": 1, "keep": 3}
    monitor = {"patience_kimg": 0.4, "rollbacks": 2}
    optimizer = {"warmup_kimg": 0.2, **rates}
    config = TrainConfig.parse(small_config(kimg=20, report=report, monitor=monitor, optimizer=optimizer, **WILD))
    with pytest.raises(GanT2IError) as error:
        run_training(config, tmp_path, resume="never", description="wrong")
    message = str(error.value)
    back = [line for line in said if "rolling back to" in line]
    print(*back, message, sep="\n")
    assert [line.rpartition("(")[2] for line in back] == ["rollback 1 of 2)", "rollback 2 of 2)"]
    assert [f"times {factor}" in line for factor, line in zip(("0.5", "0.25"), back, strict=True)] == [True, True]
    assert seen in message
    assert "it rolled back 2 times, to ever lower rates" in message
    assert "optimizer.g_lr" in message
    (folder,) = list_runs(tmp_path)
    assert read_tensors(folder.state)[1]["rollbacks"] == 2
    assert all(tensor.isfinite().all() for tensor in read_tensors(folder.state)[0].values())
    load_snapshot(folder.snapshots()[-1])


def test_a_run_whose_pixels_run_away_before_anything_is_saved_says_what_to_try(small_config: Callable[..., Any], tmp_path: Path) -> None:
    report = {"stats_kimg": 0.04, "grid_kimg": 100, "snapshot_kimg": 1, "grid_prompts": 1, "grid_seeds": 1}
    config = TrainConfig.parse(small_config(kimg=20, report=report, optimizer={"g_lr": 0.1}, **WILD))
    with pytest.raises(GanT2IError, match=r"stopped at \d+ images: outputs have exploded: .*; there is no snapshot yet; try lower"):
        run_training(config, tmp_path, resume="never", description="wrong")
