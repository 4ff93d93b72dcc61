"""``gan-t2i evaluate``: figures on the screen, in the run's folder and in TensorBoard."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gan_t2i.cli.main import command
from gan_t2i.data.packing import pack
from gan_t2i.data.settings import DataSettings
from gan_t2i.evaluation.shapes import suite
from gan_t2i.evaluation.shapes.grader import Grade
from gan_t2i.evaluation.shapes.prompts import SUITE_TASKS
from gan_t2i.runs import RunFolder

QUICK = ["--seeds", "2", "--limit", "2"]


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the trained run, to write into."""
    return RunFolder(Path(shutil.copytree(trained.path, tmp_path / "runs" / trained.path.name)))


def test_a_run(run: RunFolder) -> None:
    result = CliRunner().invoke(command, ["evaluate", "shapes", str(run.path), *QUICK])
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


def test_an_earlier_snapshot_with_named_files(run: RunFolder, tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "told" / "a.json"), "--sheet", str(tmp_path / "told" / "b.png")]
    result = CliRunner().invoke(command, ["evaluate", "shapes", str(run.snapshot(20)), *QUICK, *files])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "told" / "a.json").read_text())["nimg"] == 20
    assert (tmp_path / "told" / "b.png").is_file()
    assert not (run.path / "evaluation").exists()


def test_a_sheet_without_failures(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "grade_estimate", lambda *arguments: Grade(True, "all of it"))
    files = ["--json", str(tmp_path / "a.json"), "--sheet", str(tmp_path / "b.png")]
    (tmp_path / "a.json").touch()
    result = CliRunner().invoke(command, ["evaluate", "shapes", str(run.path), *QUICK, *files])
    assert result.exit_code == 0, result.output
    assert f"{files[1]} exists and is replaced" in result.stderr
    assert f"no picture failed, so there is nothing to show in {files[3]}" in result.stderr
    assert not (tmp_path / "b.png").exists()


def test_a_snapshot_outside_of_a_run_leaves_nothing_behind(trained: RunFolder, tmp_path: Path) -> None:
    snapshot = Path(shutil.copy(trained.snapshot(40), tmp_path / "model.safetensors"))
    result = CliRunner().invoke(command, ["evaluate", "shapes", str(snapshot), *QUICK])
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert "counting" in result.stdout


def test_refusals(run: RunFolder, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["evaluate", "shapes", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "no such run or snapshot" in result.stderr
    for arguments in ([str(run.path)], [str(run.path), "--limit", "2"], ["latest"], ["shpaes", "latest"]):
        result = CliRunner().invoke(command, ["evaluate", *arguments])
        assert result.exit_code == 2
        sentence = "is not a measure; write gan-t2i evaluate shapes, retrieval, pictures, cells or copies, and then the run"
        assert result.stderr.splitlines()[-1] == f"Error: {arguments[0]} {sentence}"
    assert CliRunner().invoke(command, ["evaluate", "shapes", str(run.path), "--limit", "1"]).exit_code == 2
    (tmp_path / "file").touch()
    events = [path.name for path in run.path.glob("events.*")]
    result = CliRunner().invoke(command, ["evaluate", "shapes", str(run.snapshot(40)), *QUICK, "--json", str(tmp_path / "file" / "x.json")])
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
    assert "model:" not in result.stderr  # nothing is drawn for it
    assert [path.name for path in run.path.glob("events.*")] == events


def test_retrieval_of_the_run_s_own_data(run: RunFolder, pictures: Path) -> None:
    result = CliRunner().invoke(command, ["evaluate", "retrieval", str(run.path)])
    assert result.exit_code == 0, result.output
    header, *lines = (line.split() for line in result.stdout.splitlines())
    assert header == ["pictures", "R@1", "+-", "chance", "gap", "n"]
    assert [(line[0], line[5]) for line in lines] == [
        (f"{kind}_{side}", "2") for side in ("train", "heldout") for kind in ("real", "generated")
    ]
    values = json.loads((run.path / "evaluation" / "retrieval-000000040.json").read_text())
    assert (values["nimg"], values["suite"], values["own_data"]) == (40, "retrieval", True)
    events = EventAccumulator(str(run.path)).Reload()
    for name, score in values["scores"].items():
        for what in ("r1", "gap"):
            [event] = events.Scalars(f"Metrics/retrieval/{name}_{what}")
            assert (event.step, event.value) == (40, pytest.approx(score[what]))
    again = CliRunner().invoke(command, ["evaluate", "retrieval", str(run.path), "--data", str(pictures)])
    assert again.stdout == result.stdout
    assert "trained before" in again.stderr


def test_retrieval_refuses(run: RunFolder, tmp_path: Path) -> None:
    snapshot = shutil.copy(run.snapshot(40), tmp_path / "model.safetensors")
    for arguments, said in [
        (["retrieval", snapshot], "name them with --data"),
        (["retrieval", run.path, "--crop", "pad"], r"No such option:? '?--crop"),
        (["retrieval", run.path, "--sheet", "a.png"], r"No such option:? '?--sheet"),
        (["retrieval", run.path, "--features", "random"], r"No such option:? '?--features"),
        (["shapes", run.path, "--data", "x"], r"No such option:? '?--data"),
    ]:
        result = CliRunner().invoke(command, ["evaluate", *map(str, arguments)])
        assert result.exit_code == 2
        assert re.search(said, result.stderr)


def test_pictures_against_those_of_other_data(run: RunFolder, many_pictures: Path) -> None:
    options = ["--data", str(many_pictures), "--features", "random", "--limit", "100", "--seeds", "2"]
    result = CliRunner().invoke(command, ["evaluate", "pictures", str(run.path), *options])
    assert result.exit_code == 0, result.output
    assert "not the pictures and captions that the model was trained on" in result.stderr
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["features", "hash", "d", "side", "figure", "generated", "std", "rebuilt", "real", "n"]
    [file] = (run.path / "evaluation").iterdir()
    values = json.loads(file.read_text())
    # not in the place of the run's own figures
    assert file.name == f"pictures-000000040-featuresrandom-limit100-seeds2-data{values['data_fingerprint'][:8]}.json"
    assert (values["nimg"], values["suite"], values["own_data"], len(values["figures"])) == (40, "pictures", False, 8)
    events = EventAccumulator(str(run.path)).Reload()
    for figure, line in zip(values["figures"], lines, strict=False):
        assert line.split()[:5] == ["random", figure["sha256"][:12], "256", "train", figure["name"]]
        if figure["drawn"] is not None:
            [event] = events.Scalars(f"Metrics/pictures/random/train_{figure['name']}-data{values['data_fingerprint'][:8]}")
            assert (event.step, event.value) == (40, pytest.approx(figure["drawn"], rel=1e-4))
    assert lines[-1].startswith("heldout: left out")


def test_pictures_refuses(run: RunFolder, tmp_path: Path) -> None:
    snapshot = shutil.copy(run.snapshot(40), tmp_path / "model.safetensors")
    for arguments, code, said in [
        ([run.path], 1, "100 are needed, and there are 10"),
        ([run.path, "--features", "vgg"], 2, "--features vgg is not a network to compare pictures in; there are random, matcher"),
        ([run.path, "--seeds", "1"], 2, "1 is not in the range x>=2"),
        ([snapshot], 2, "name them with --data"),
        ([run.path, "--data", tmp_path / "nowhere"], 2, "nowhere"),
    ]:
        result = CliRunner().invoke(command, ["evaluate", "pictures", *map(str, arguments)])
        assert result.exit_code == code, result.output
        assert said in result.stderr


@pytest.mark.parametrize("alpha", [False, True])
def test_packed_data_are_taken_as_they_are(run: RunFolder, many_pictures: Path, tmp_path: Path, alpha: bool) -> None:
    packed = tmp_path / "packed"
    pack(many_pictures, packed, 16, DataSettings(alpha=alpha), progress=False)
    options = ["--data", str(packed), "--features", "random", "--limit", "100", "--seeds", "2"]
    result = CliRunner().invoke(command, ["evaluate", "pictures", str(run.path), *options])
    assert result.exit_code == 0, result.output
    assert f"data: {packed}, packed at 16 px" in result.stderr


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("decoder.perceptual", "efficientnet-lite2, its sibling, favours this model"),
        ("autoencoder.params.perceptual", "efficientnet-lite2, its sibling, favours this model"),
        ("decoder.kimg", None),
    ],
)
def test_a_network_that_is_like_one_of_the_training_is_warned_of(run: RunFolder, key: str, said: str | None) -> None:
    config = yaml.safe_load(run.config.read_text())
    *groups, leaf = key.split(".")
    place = config
    for group in groups:
        place = place.setdefault(group, {})
    place[leaf] = 1
    run.config.write_text(yaml.safe_dump(config))
    arguments = ["evaluate", "pictures", str(run.path), "--data", "nowhere", "--features", "efficientnet-lite2"]
    stderr = CliRunner().invoke(command, arguments).stderr
    assert ("favours" in stderr) == (said is not None)
    assert (said or "") in stderr


@pytest.mark.parametrize(("features", "warned"), [("efficientnet-lite2", True), ("random", False)])
def test_a_snapshot_alone_does_not_say_what_its_decoder_was_trained_on(trained: RunFolder, tmp_path: Path, features: str, warned: bool) -> None:
    snapshot = shutil.copy(trained.snapshot(40), tmp_path / "model.safetensors")
    stderr = CliRunner().invoke(command, ["evaluate", "pictures", str(snapshot), "--data", "nowhere", "--features", features]).stderr
    assert ("does not say whether its decoder was trained on features like efficientnet-lite2's" in stderr) == warned
