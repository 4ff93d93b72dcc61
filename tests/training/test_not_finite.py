"""Numbers that stop being finite stop the run, and spoil nothing that is on disk."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from gan_t2i.checkpoint import load_snapshot, read_tensors
from gan_t2i.cli.main import command
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.runs import RunFolder, list_runs
from gan_t2i.training.session import Session

# Statistics are due after the snapshots, so that these have to look for themselves.
SPARSE = {"stats_kimg": 1, "grid_kimg": 1, "snapshot_kimg": 0.008, "grid_prompts": 1, "grid_seeds": 1}
Start = Callable[..., tuple[RunFolder, int | None]]


@pytest.fixture
def break_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a NaN into a network before the step that shows the pictures from `nimg` on."""
    run_step = Session.run_step

    def plan(nimg: int | None, network: str = "G") -> None:
        def run_step_broken(session: Session, at: int) -> dict[str, torch.Tensor]:
            if at == nimg:
                next(getattr(session.networks, network).parameters()).data.fill_(math.nan)
            return run_step(session, at)

        monkeypatch.setattr(Session, "run_step", run_step_broken)

    return plan


@pytest.mark.parametrize("report", [SPARSE, {**SPARSE, "stats_kimg": 0.004}], ids=["few statistics", "many statistics"])
@pytest.mark.parametrize("network", ["G", "D"])
def test_the_last_good_snapshot_and_state_stay(
    start: Start, break_at: Callable[..., None], assert_same_state: Callable[..., None], tmp_path: Path, report: dict[str, Any], network: str
) -> None:
    break_at(20, network)
    with pytest.raises(GanT2IError) as error:
        start(report=report, monitor={"rollbacks": 0})
    (folder,) = list_runs(tmp_path / "runs")
    assert not isinstance(error.value, UsageError)
    for part in ("Loss/G/loss", "is not finite", f"the last good snapshot is kept: {folder.snapshot(16)}", "optimizer.d_lr"):
        assert part in str(error.value)
    assert folder.snapshots() == [folder.snapshot(8), folder.snapshot(16)]
    load_snapshot(folder.snapshot(16))
    tensors, metadata = read_tensors(folder.state)
    assert metadata["nimg"] == 16
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert not list(folder.path.rglob("*.tmp"))
    # and the same command goes on from there, where the cause is gone
    break_at(None)
    assert start(report=report, monitor={"rollbacks": 0}) == (folder, None)
    assert_same_state(folder, start(outdir=tmp_path / "unbroken", report=report)[0])


def test_before_the_first_snapshot(start: Start, break_at: Callable[..., None], tmp_path: Path) -> None:
    break_at(0)
    with pytest.raises(GanT2IError, match="there is no snapshot yet"):
        start()
    (folder,) = list_runs(tmp_path / "runs")
    assert not folder.snapshots()
    assert not folder.state.exists()


def test_the_command_says_so_in_one_sentence(small_config: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small_config()), encoding="utf-8")
    result = CliRunner().invoke(command, ["train", "--config", str(config), "--outdir", str(tmp_path / "runs"), "--set", "optimizer.d_lr=1e30"])
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert "is not finite" in line
    assert "optimizer.d_lr" in line
    assert "Traceback" not in result.output
