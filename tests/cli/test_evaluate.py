"""``gan-t2i evaluate``: figures on the screen, in the run's folder and in TensorBoard."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gan_t2i.cli.main import command
from gan_t2i.evaluation.shapes_prompts import SUITE_TASKS
from gan_t2i.runs import RunFolder

QUICK = ["--suite", "shapes", "--seeds", "2", "--limit", "2"]


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the trained run, to write into."""
    return RunFolder(Path(shutil.copytree(trained.path, tmp_path / "runs" / trained.path.name)))


def test_a_run(run: RunFolder) -> None:
    result = CliRunner().invoke(command, ["evaluate", str(run.path), *QUICK])
    assert result.exit_code == 0, result.output
    header, *lines = (line.split() for line in result.stdout.splitlines())
    assert header == ["task", "score", "chance", "n"]
    assert [line[0] for line in lines] == list(SUITE_TASKS)
    assert all(line[3] == "4" and 0 <= float(line[1]) <= 1 for line in lines)
    values = json.loads((run.path / "evaluation" / "shapes-000000040-limit2-seeds2.json").read_text())
    assert (values["nimg"], values["resolution"], values["seeds"]) == (40, 16, 2)
    assert values["snapshot"] == str(run.snapshot(40))
    with Image.open(run.path / "evaluation" / "shapes-000000040-limit2-seeds2.png") as sheet:
        assert sheet.width > 800
    events = EventAccumulator(str(run.path)).Reload()
    for task, line in zip(SUITE_TASKS, lines, strict=True):
        [event] = events.Scalars(f"Metrics/shapes/{task}")
        assert event.step == 40
        assert event.value == pytest.approx(values["tasks"][task]["score"])
        assert float(line[1]) == pytest.approx(event.value, abs=6e-4)
    assert run.snapshots()[-1] == run.snapshot(40)


def test_an_earlier_snapshot_with_files_where_told(run: RunFolder, tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "told" / "a.json"), "--sheet", str(tmp_path / "told" / "b.png")]
    result = CliRunner().invoke(command, ["evaluate", str(run.snapshot(20)), *QUICK, *files])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "told" / "a.json").read_text())["nimg"] == 20
    assert (tmp_path / "told" / "b.png").is_file()
    assert not (run.path / "evaluation").exists()


def test_a_snapshot_outside_of_a_run_leaves_nothing_behind(trained: RunFolder, tmp_path: Path) -> None:
    snapshot = Path(shutil.copy(trained.snapshot(40), tmp_path / "model.safetensors"))
    result = CliRunner().invoke(command, ["evaluate", str(snapshot), *QUICK])
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert "counting" in result.stdout


def test_refusals(run: RunFolder, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["evaluate", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "no such run or snapshot" in result.stderr
    assert CliRunner().invoke(command, ["evaluate", str(run.path), "--suite", "other"]).exit_code == 2
    assert CliRunner().invoke(command, ["evaluate", str(run.path), "--limit", "1"]).exit_code == 2
    (tmp_path / "file").touch()
    events = [path.name for path in run.path.glob("events.*")]
    result = CliRunner().invoke(command, ["evaluate", str(run.snapshot(40)), *QUICK, "--json", str(tmp_path / "file" / "x.json")])
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
    assert [path.name for path in run.path.glob("events.*")] == events


def test_retrieval_of_the_run_s_own_data(run: RunFolder, pictures: Path) -> None:
    result = CliRunner().invoke(command, ["evaluate", str(run.path), "--suite", "retrieval"])
    assert result.exit_code == 0, result.output
    header, *lines = (line.split() for line in result.stdout.splitlines())
    assert header == ["pictures", "R@1", "+-", "chance", "gap", "n"]
    assert [(line[0], line[5]) for line in lines] == [
        (f"{kind}_{side}", "2") for side in ("train", "heldout") for kind in ("real", "generated")
    ]
    values = json.loads((run.path / "evaluation" / "retrieval-000000040.json").read_text())
    assert (values["nimg"], values["suite"]) == (40, "retrieval")
    events = EventAccumulator(str(run.path)).Reload()
    for name, score in values["scores"].items():
        for what in ("r1", "gap"):
            [event] = events.Scalars(f"Metrics/retrieval/{name}_{what}")
            assert (event.step, event.value) == (40, pytest.approx(score[what]))
    again = CliRunner().invoke(command, ["evaluate", str(run.path), "--suite", "retrieval", "--data", str(pictures)])
    assert again.stdout == result.stdout
    assert "trained before" in again.stderr


def test_retrieval_refuses(run: RunFolder, tmp_path: Path) -> None:
    snapshot = shutil.copy(run.snapshot(40), tmp_path / "model.safetensors")
    for arguments, said in [
        ([snapshot, "--suite", "retrieval"], "name them with --data"),
        ([run.path, "--suite", "retrieval", "--crop", "pad"], "goes with --data"),
        ([run.path, "--suite", "retrieval", "--sheet", "a.png"], "--sheet goes with --suite shapes"),
        ([run.path, "--data", "x"], "go with --suite retrieval"),
    ]:
        result = CliRunner().invoke(command, ["evaluate", *map(str, arguments)])
        assert result.exit_code == 2
        assert said in result.stderr
