"""``gan-t2i evaluate copies``, also called ``gan-t2i audit``: a verdict on the screen, figures and a sheet in the run's folder."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gan_t2i.cli.main import command
from gan_t2i.runs import RunFolder


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the trained run, to write into."""
    return RunFolder(Path(shutil.copytree(trained.path, tmp_path / "runs" / trained.path.name)))


def test_a_run_against_other_data(run: RunFolder, many_pictures: Path) -> None:
    result = CliRunner().invoke(command, ["evaluate", "copies", str(run.path), "--data", str(many_pictures), "--limit", "5"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 1 + 2 * 5 + 2
    assert lines[-1].startswith("verdict: ")
    [file] = (run.path / "evaluation").glob("copies-000000040-limit5-data*.json")
    values = json.loads(file.read_text())
    assert (values["nimg"], values["suite"], values["verdict"]) == (40, "copies", lines[-1])
    assert len(values["closest"]) == 15
    with Image.open(file.with_suffix(".png")) as sheet:
        assert sheet.width > 8 * 96
    tag = f"Metrics/audit/random/drawn_recombined_median-data{values['data_fingerprint'][:8]}"
    [event] = EventAccumulator(str(run.path)).Reload().Scalars(tag)
    [row] = [row for row in values["rows"] if (row["space"], row["kind"]) == ("random", "drawn recombined")]
    assert (event.step, event.value) == (40, pytest.approx(row["median"], rel=1e-4))


def test_own_prompts_and_a_snapshot_outside_of_a_run(trained: RunFolder, many_pictures: Path, tmp_path: Path) -> None:
    snapshot = Path(shutil.copy(trained.snapshot(40), tmp_path / "model.safetensors"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n", encoding="utf-8")
    told = ["--json", str(tmp_path / "a.json"), "--sheet", str(tmp_path / "a.png")]
    result = CliRunner().invoke(command, ["audit", str(snapshot), "--data", str(many_pictures), "--prompts", str(prompts), *told])
    assert result.exit_code == 0, result.output
    assert "drawn own prompts" in result.stdout
    assert {one["prompt"] for one in json.loads((tmp_path / "a.json").read_text())["closest"]} == {"a red circle", "a blue square"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png", "model.safetensors", "prompts.txt"]


def test_audit_is_another_name() -> None:
    assert "The same as evaluate copies." in CliRunner().invoke(command, ["--help"]).output
    shown, alias = (CliRunner().invoke(command, [*names, "--help"]).output for names in (["evaluate", "copies"], ["audit"]))
    assert shown.splitlines()[1:] == alias.splitlines()[1:]


def test_refusals(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    for arguments, code, said in [
        ([], 1, "at least 20 training pictures, and there are 10"),
        (["--features", "matcher"], 2, "--features matcher was trained on the training pictures"),
        (["--features", "vgg"], 2, "--features vgg is not a network"),
        (["--prompts", tmp_path / "empty.txt"], 2, "holds no prompt"),
        (["--crop", "pad"], 2, r"No such option:? '?--crop"),
    ]:
        result = CliRunner().invoke(command, ["audit", str(run.path), *map(str, arguments)])
        assert result.exit_code == code, result.output
        assert re.search(said, result.stderr)
