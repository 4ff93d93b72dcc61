"""Fixtures of the tests of training."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_t2i.checkpoint import read_tensors
from gan_t2i.runs import RunFolder
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.run import run_training
from gan_t2i.training.session import Session

Values = Callable[..., dict[str, Any]]


@pytest.fixture
def start(small_config: Values, tmp_path: Path) -> Callable[..., tuple[RunFolder, int | None]]:
    """Trains the small config, with top-level keys replaced, under tmp_path/runs unless told."""

    def run(
        *, outdir: Path = tmp_path / "runs", resume: str = "auto", changed_data: bool = False, keep_threads: bool = False, **changes: Any
    ) -> tuple[RunFolder, int | None]:
        config = TrainConfig.parse(small_config(**changes))
        return run_training(config, outdir, resume=resume, description="small", changed_data=changed_data, keep_threads=keep_threads)

    return run


@pytest.fixture(autouse=True)
def _any_autoencoder_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoencoders of these tests learn for a few steps alone."""
    monkeypatch.setattr("gan_t2i.pretraining.autoencoder.LEAST_PSNR", 0.0)


@pytest.fixture
def signal_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sends this process a signal before the step that shows the pictures from `nimg` on, the first time that it comes."""

    def plan(nimg: int, number: int = signal.SIGTERM, times: int = 1) -> None:
        run_step = Session.run_step

        def run_step_and_signal(session: Session, at: int) -> dict[str, torch.Tensor]:
            if at == nimg:
                monkeypatch.setattr(Session, "run_step", run_step)
                for _ in range(times):
                    os.kill(os.getpid(), number)
            return run_step(session, at)

        monkeypatch.setattr(Session, "run_step", run_step_and_signal)

    return plan


@pytest.fixture
def assert_same_state() -> Callable[[RunFolder, RunFolder], None]:
    """Fails unless two runs stand at the same nimg with the same bits in every tensor, the snapshot's too."""

    def check(left: RunFolder, right: RunFolder) -> None:
        for ours, theirs in ((left.state, right.state), (left.snapshots()[-1], right.snapshots()[-1])):
            tensors, metadata = read_tensors(ours)
            expected, expected_metadata = read_tensors(theirs)
            assert metadata == expected_metadata
            assert tensors.keys() == expected.keys()
            assert [name for name in tensors if not torch.equal(tensors[name], expected[name])] == []

    return check


@pytest.fixture
def next_second() -> Callable[[], None]:
    """Waits until the clock shows another second: TensorBoard sorts a run's event files by the second that they were begun in."""

    def wait() -> None:
        second = int(time.time())
        while int(time.time()) == second:
            time.sleep(0.02)

    return wait
