"""A disk that is full, or may not be written: one sentence, nothing torn, and the same command goes on once there is room."""

import errno
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from processes import same_threads

from gan_t2i import checkpoint
from gan_t2i.checkpoint import read_tensors
from gan_t2i.cli.main import command
from gan_t2i.runs import RunFolder, list_runs
from gan_t2i.training.session import Session

SHORT: dict[str, Any] = {
    "kimg": 0.016,
    "report": {"stats_kimg": 0.004, "grid_kimg": 1, "snapshot_kimg": 0.008, "grid_prompts": 1, "grid_seeds": 1},
}
Start = Callable[..., tuple[RunFolder, int | None]]


def train_in_a_small_space(arguments: list[str], cache: str, errors: Path, writes: int) -> None:
    """The command line, in which the file of tensors after `writes` of them may only have 100,000 bytes."""
    same_threads()
    os.environ["GAN_T2I_CACHE"] = cache
    sys.stderr = errors.open("w")
    save_file, left = checkpoint.save_file, writes

    def full(*given: Any, **named: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        save_file(*given, **named)

    checkpoint.save_file = full
    try:
        command(["train", *arguments])
    finally:
        sys.stderr.flush()


@pytest.mark.parametrize("writes", [0, 1, 2, 3], ids=["first snapshot", "first state", "second snapshot", "second state"])
def test_a_full_disk(
    start: Start, small_config: Callable[..., Any], assert_same_state: Callable[..., None], tmp_path: Path, writes: int
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small_config(**SHORT)), encoding="utf-8")
    arguments = ["--config", str(config), "--outdir", str(tmp_path / "runs"), "--desc", "small"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gan_t2i.training.run", "sentence_transformers", "sentence_transformers.base.modules", "pytest"])
    process = context.Process(target=train_in_a_small_space, args=(arguments, os.environ["GAN_T2I_CACHE"], tmp_path / "errors", writes))
    process.start()
    process.join(120)
    errors = (tmp_path / "errors").read_text()
    assert process.exitcode == 1, errors
    assert "Error: cannot write" in errors
    assert "File too large" in errors
    assert "Traceback" not in errors
    (folder,) = list_runs(tmp_path / "runs")
    assert len(folder.snapshots()) == (writes + 1) // 2
    assert folder.state.exists() == (writes >= 2)
    assert not folder.state.exists() or read_tensors(folder.state)[1]["nimg"] == 8
    assert not list(folder.path.rglob("*.tmp"))
    assert start(**SHORT) == (folder, None)
    assert_same_state(folder, start(outdir=tmp_path / "unbroken", **SHORT)[0])


def test_a_run_folder_that_may_not_be_written(
    start: Start, signal_after: Callable[..., None], small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rejected when the run would go on, not hours later. Root may write anywhere, so the system's refusal is played."""
    signal_after(8)
    folder, _ = start(**SHORT)
    before = read_tensors(folder.state)[1]
    make = tempfile.mkstemp

    def refuse(*given: Any, **named: Any) -> Any:
        if str(named.get("dir", "")).startswith(str(tmp_path / "runs")):
            raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(named["dir"]))
        return make(*given, **named)

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small_config(**SHORT)), encoding="utf-8")
    result = CliRunner().invoke(command, ["train", "--config", str(config), "--outdir", str(tmp_path / "runs")])
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert str(folder.path) in line
    assert "Read-only file system" in line
    assert "Traceback" not in result.output
    monkeypatch.undo()
    assert read_tensors(folder.state)[1] == before


def test_a_cache_that_is_deleted_in_mid_run(
    start: Start, assert_same_state: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Mapped files stay until the run ends; the next run makes them again."""
    unbroken, _ = start(outdir=tmp_path / "unbroken", **SHORT)
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path / "cache"))
    run_step, gone = Session.run_step, []

    def delete_and_run(session: Session, nimg: int) -> dict[str, torch.Tensor]:
        if nimg == 4:
            gone.extend((tmp_path / "cache").iterdir())
            shutil.rmtree(tmp_path / "cache")
        return run_step(session, nimg)

    monkeypatch.setattr(Session, "run_step", delete_and_run)
    folder, _ = start(**SHORT)
    assert len(gone) == 2  # the packed pictures and the embeddings
    assert_same_state(folder, unbroken)
    assert not (tmp_path / "cache").exists()
