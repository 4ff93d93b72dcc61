"""``gan-t2i train`` from the config file to the run folder."""

import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from gan_t2i.checkpoint import read_tensors
from gan_t2i.cli.main import command
from gan_t2i.core.config import read_yaml
from gan_t2i.doctor import dry_run, plan
from gan_t2i.doctor.dry_run import Pace
from gan_t2i.runs import RunFolder, list_runs
from gan_t2i.text import weights
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session


@pytest.fixture
def train(small_config: Callable[..., Any], tmp_path: Path) -> Callable[..., Result]:
    """Runs the command on the small config, shortened to two steps, in tmp_path/my runs."""
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(small_config(kimg=0.008)), encoding="utf-8")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(command, ["train", "--config", str(config), "--outdir", str(tmp_path / "my runs"), *map(str, arguments)])

    return run


def test_it_trains_and_says_what_comes_next(train: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = train()
    assert result.exit_code == 0, result.output
    folder = RunFolder(tmp_path / "my runs" / "00000-tiny")
    assert f"run folder: {folder.path}  (losses and pictures: tensorboard --logdir '{tmp_path / 'my runs'}')" in result.output
    assert f"done: {folder.snapshot(8)}" in result.output
    assert "12 usable pairs, 24 captions; 2 pairs held out" in result.output
    assert "text encoder: tiny" in result.output
    assert read_tensors(folder.state)[1]["nimg"] == 8
    monkeypatch.chdir(tmp_path)
    suggested = shlex.split(result.stdout.splitlines()[-1])
    assert suggested[:4] == ["try:", "gan-t2i", "sample", str(folder.path)]
    shown = CliRunner().invoke(command, suggested[2:])
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "out.png").is_file()


def test_options_beat_set_beats_the_file(train: Callable[..., Result], pictures: Path, tmp_path: Path) -> None:
    options = ["--set", "batch=2", "--set", "optimizer.g_lr=2e-4", "--set", "kimg=5", "--set", "seed=1", "--set", "data.source=nowhere"]
    result = train(*options, "--kimg", 0.004, "--seed", 7, "--desc", "My Run!", "--data", pictures)
    assert result.exit_code == 0, result.output
    (folder,) = list_runs(tmp_path / "my runs")
    assert folder.path.name == "00000-my-run"
    values = read_yaml(folder.config)
    assert (values["kimg"], values["seed"], values["batch"], values["data"]["source"]) == (0.004, 7, 2, str(pictures))
    rates = {"g_lr": 2e-4, "d_lr": 3e-4, "warmup_kimg": 0.0, "cooldown_kimg": 0.0}
    assert values["optimizer"] == {**rates, "beta1": 0.0, "beta2": 0.99, "g_orthogonal": False}
    assert read_tensors(folder.state)[1]["nimg"] == 4


def test_resume(train: Callable[..., Result], tmp_path: Path) -> None:
    assert train("--kimg", 0.004).exit_code == 0
    (folder,) = list_runs(tmp_path / "my runs")
    result = train("--resume", folder.path)
    assert result.exit_code == 0, result.output
    assert f"going on with {folder.path} after 4 images" in result.output
    assert list_runs(tmp_path / "my runs") == [folder]
    assert read_tensors(folder.state)[1]["nimg"] == 8
    assert train("--resume", "never").exit_code == 0
    assert len(list_runs(tmp_path / "my runs")) == 2


def test_dry_run(train: Callable[..., Result], tmp_path: Path) -> None:
    result = train("--dry-run", "--kimg", 1000)
    assert result.exit_code == 0, result.output
    assert "12 usable pairs, 24 captions; 2 pairs held out" in result.output
    for name, kind, parts in (("generator", "style", "mapping"), ("discriminator", "resnet", "head")):
        (total,) = re.findall(rf"^{name} {kind}: ([\d,]+) parameters$", result.stdout, re.MULTILINE)
        table = result.stdout.split(f"{name} {kind}:")[1]
        assert int(total.replace(",", "")) > 1000
        assert re.search(rf"^  {parts} +\w+ +[\d,]+  \S", table, re.MULTILINE)
        assert re.search(r"^  text_head +TextHead +[\d,]+  \S", table, re.MULTILINE)
    (estimate,) = re.findall(
        r"^estimate on \S+, from \d steps of 4 pictures: (\d+) img/s, (\d+) minutes for 1000 kimg, ([\d.]+) GiB", result.stdout, re.MULTILINE
    )
    rate, minutes, memory = map(float, estimate)
    assert minutes == pytest.approx(1e6 / rate / 60, rel=0.1)
    assert 0.1 < memory < 100
    assert "nothing was trained" in result.output
    assert not (tmp_path / "my runs").exists()


@pytest.fixture
def dial(tmp_path: Path, pictures: Path, small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command without a config on the test pictures, with the small recipe and encoder, in tmp_path/runs."""
    monkeypatch.setattr(weights, "find_local", lambda: None)

    def run(*arguments: object, data: object = pictures) -> Result:
        return CliRunner().invoke(command, ["train", "--data", str(data), "--outdir", str(tmp_path / "my runs"), *map(str, arguments)])

    return run


@pytest.fixture
def paces(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replaces measurements: each takes the next of these rates, in images per second. In a short run, records take half of the time."""
    rates = [40.0, 80.0, 160.0]
    monkeypatch.setattr(plan, "pace_on", lambda config, records: Pace("cpu", 4, config.batch, config.kimg, rates.pop(0), 1.0))
    return rates


def stop_at(nimg: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process SIGINT before the step from `nimg` on, once."""
    run_step = Session.run_step

    def run_step_and_signal(session: Session, at: int) -> Any:
        if at == nimg:
            monkeypatch.setattr(Session, "run_step", run_step)
            os.kill(os.getpid(), signal.SIGINT)
        return run_step(session, at)

    monkeypatch.setattr(Session, "run_step", run_step_and_signal)


def test_data_alone_trains_the_recommended_config(dial: Callable[..., Result], tmp_path: Path, pictures: Path) -> None:
    result = dial("--minutes", "0.001", "--set", "seed=3", "--caption-column", "text")
    assert result.exit_code == 0, result.output
    (folder,) = list_runs(tmp_path / "my runs")
    assert folder.path.name.startswith("00000-pictures")
    config, recommended = TrainConfig.parse(read_yaml(folder.config)), folder.path / "recommended.yaml"
    said = "recipe|resolution|length|text encoder: tiny [(]|augmentation|written"
    lines = [line for line in result.output.splitlines() if re.match(said, line)]
    assert lines[0] == "recipe: small (the smallest one for 16 px on a CPU)"
    size = "95% of the pictures have at least 24 px on their shorter side; 16 is the largest power of two within"
    assert lines[1] == f"resolution: 16 px ({size})"
    assert re.fullmatch(rf"length: {config.kimg:g} kimg \(about 0.001 minutes at [\d.e+]+ img/s, measured here\)", lines[2])
    assert lines[3].startswith("text encoder: tiny (all-MiniLM-L6-v2 is not on this machine")
    assert lines[4:] == [f"written, with the reasons: {recommended}"]
    again = f"# gan-t2i train --data {pictures} --minutes 0.001 --set seed=3 --set data.caption_column=text"
    assert recommended.read_text().splitlines()[0] == again
    assert TrainConfig.parse(read_yaml(recommended) | {"seed": 3}) == config
    assert (config.seed, config.data.source, config.data.caption_column) == (3, str(pictures), "text")
    assert read_tensors(folder.state)[1]["nimg"] >= config.kimg * 1000


def test_the_same_command_goes_on_whatever_the_pace_is(
    dial: Callable[..., Result], paces: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(4, monkeypatch)
    assert dial("--minutes", 0.01).exit_code == 128 + signal.SIGINT
    (folder,) = list_runs(tmp_path / "my runs")
    assert (read_yaml(folder.config)["kimg"], read_tensors(folder.state)[1]["nimg"]) == (0.012, 8)
    (folder.path / "recommended.yaml").write_text("mine\n")
    result = dial("--minutes", 0.01)
    assert result.exit_code == 0, result.output
    assert f"going on with {folder.path} after 8 images" in result.output
    assert (list_runs(tmp_path / "my runs"), paces) == ([folder], [80, 160])  # nothing was measured
    assert (read_yaml(folder.config)["kimg"], read_tensors(folder.state)[1]["nimg"]) == (0.012, 12)
    assert (folder.path / "recommended.yaml").read_text() == "mine\n"
    # a finished run is not continued, and another command is another run
    assert dial("--minutes", 0.01).exit_code == 0
    assert dial("--minutes", 0.01, "--seed", 1).exit_code == 0
    assert [read_yaml(run.config)["kimg"] for run in list_runs(tmp_path / "my runs")] == [0.012, 0.024, 0.048]


def test_resuming_a_measured_run_by_name(
    dial: Callable[..., Result], paces: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--resume latest: latest has no state to go on from" in dial("--resume", "latest").output
    stop_at(4, monkeypatch)
    dial("--minutes", 0.01)
    (folder,) = list_runs(tmp_path / "my runs")
    refused = dial("--minutes", 0.02, "--resume", "latest")
    assert refused.exit_code == 2
    assert refused.output.splitlines()[-1] == (
        f"Error: --resume latest: {folder.path} was begun by another command, which differs in minutes (0.01, not 0.02): "
        "repeat that, or leave the data and the minutes out, for the run's own config"
    )
    assert dial("--minutes", 0.01, "--resume", "never").exit_code == 0
    assert dial("--minutes", 0.01, "--resume", folder.path).exit_code == 0
    assert read_tensors(folder.state)[1]["nimg"] == 12
    dry = CliRunner().invoke(command, ["train", "--kimg", "0.016", "--resume", str(folder.path), "--dry-run"])
    assert (dry.exit_code, "dry run: nothing was trained" in dry.output) == (0, True), dry.output
    longer = CliRunner().invoke(command, ["train", "--kimg", "0.016", "--resume", str(folder.path)])
    assert longer.exit_code == 0, longer.output
    assert read_tensors(folder.state)[1]["nimg"] == 16
    again = CliRunner().invoke(command, ["train", "--config", str(folder.config), "--kimg", "0.02", "--resume", str(folder.path)])
    assert (again.exit_code, read_tensors(folder.state)[1]["nimg"]) == (0, 20)
    assert len(list_runs(tmp_path / "my runs")) == 2


def test_a_single_picture_trains_without_mismatch_and_says_so(dial: Callable[..., Result], tmp_path: Path) -> None:
    data = tmp_path / "one"
    data.mkdir()
    Image.new("RGB", (24, 24), "red").save(data / "a.png")
    (data / "a.txt").write_text("a red square")
    result = dial("--kimg", 0.004, "--set", "batch=2", data=data)
    assert result.exit_code == 0, result.output
    assert "terms: mismatch is off, as a single pair cannot be told apart from others" in result.output


def test_the_same_command_goes_on_where_the_data_have_moved(
    dial: Callable[..., Result], paces: list[float], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(4, monkeypatch)
    dial("--minutes", 0.01)
    (folder,) = list_runs(tmp_path / "my runs")
    shutil.copytree(pictures, tmp_path / "elsewhere")
    result = dial("--minutes", 0.01, data=tmp_path / "elsewhere")
    assert f"going on with {folder.path} after 8 images" in result.output
    assert list_runs(tmp_path / "my runs") == [folder]
    assert read_yaml(folder.config)["data"]["source"] == str(tmp_path / "elsewhere")
    # by a number of its own, and by its name
    monkeypatch.chdir(tmp_path)
    again = dial("--minutes", 0.01, "--resume", folder.path, data="elsewhere")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("setting", ["data=5", "text_encoder.params=5"])
def test_a_group_that_is_none_is_refused(
    dial: Callable[..., Result], paces: list[float], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(4, monkeypatch)
    dial("--minutes", 0.01)
    result = dial("--minutes", 0.01, "--set", setting)
    assert (result.exit_code, "Traceback" in result.output) == (2, False), result.output


def test_with_a_given_length_nothing_is_measured(dial: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(plan, "pace_on")
    result = dial("--kimg", 0.008, "--set", "batch=2", "--keep", 2)
    assert result.exit_code == 0, result.output
    assert "length: 0.008 kimg (as given)" in result.output
    (folder,) = list_runs(tmp_path / "my runs")
    config = TrainConfig.parse(read_yaml(folder.config))
    assert (config.kimg, config.batch, config.report.keep, config.report.grid_kimg) == (0.008, 2, 2, 0.0008)
    assert "--set batch=2 --set report.keep=2 --set kimg=0.008" in (folder.path / "recommended.yaml").read_text().splitlines()[0]


def test_minutes_scale_the_durations_of_a_config(
    train: Callable[..., Result], paces: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ("--set", "optimizer.cooldown_kimg=0.004", "--set", "report.stats_kimg=1")
    for _ in range(2):  # the second is finished by then, and begins anew
        result = train("--minutes", 0.01, *changes)
        assert result.exit_code == 0, result.output
    assert "length: 0.024 kimg (about 0.01 minutes at 80 img/s, measured here)" in result.output
    first, second = (TrainConfig.parse(read_yaml(run.config)) for run in list_runs(tmp_path / "my runs"))
    assert (first.kimg, second.kimg) == (0.012, 0.024)
    # what --set says stays, and the rest follows
    assert (second.optimizer.cooldown_kimg, second.report.stats_kimg, second.report.grid_kimg) == (0.004, 1, 0.0024)
    assert not list((tmp_path / "my runs").glob("*/recommended.yaml"))
    stop_at(4, monkeypatch)
    assert train("--minutes", 0.01, *changes).exit_code == 128 + signal.SIGINT
    assert train("--minutes", 0.01, *changes).exit_code == 0
    assert len(list_runs(tmp_path / "my runs")) == 3
    assert paces == []


def test_a_preset_is_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[TrainConfig] = []
    monkeypatch.setattr(dry_run, "dry_run_report", taken.append)
    config = Path(__file__).parents[2] / "configs" / "emoji64.yaml"
    for arguments in (["--preset", "emoji64"], ["--config", str(config)]):
        result = CliRunner().invoke(command, ["train", "--dry-run", *arguments])
        assert result.exit_code == 0, result.output
    assert taken[0] == taken[1]
    assert taken[0].autoencoder.name == "conv"


@pytest.mark.usefixtures("paces")
def test_a_dry_run_of_the_recommended_config(dial: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "dry_run_report", lambda config: f"report on {config.kimg:g} kimg")
    result = dial("--dry-run")
    assert result.exit_code == 0, result.output
    assert "length: 140 kimg (about an hour at 40 img/s, measured here)" in result.stdout
    assert "report on 140 kimg" in result.stdout
    assert not (tmp_path / "my runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to train on: name pictures with --data FOLDER, a recipe with --preset NAME, or a config with --config FILE"),
        (("--minutes", "5"), "nothing to train on: name pictures with"),
        (("--data", "PICTURES", "--minutes", "5", "--kimg", "1"), "minutes and kimg both set the length of the run: give one of them"),
        (("--data", "PICTURES", "--minutes", "5", "--set", "kimg=1"), "minutes and kimg both set the length of the run: give one of them"),
        (("--data", "PICTURES", "--minutes", "0"), "--minutes must be above 0, not 0"),
        (("--data", "PICTURES", "--minutes", "nan"), "--minutes = nan is not a finite number"),
        (("--data", "PICTURES", "--minutes", "soon"), "'soon' is not a valid float"),
        (("--data", "nowhere"), "data nowhere does not exist"),
        (("--data", "PICTURES", "--set", "data=3"), "config key data = 3"),
        (("--data", "PICTURES", "--set", "data.crop=round"), "config key data.crop = 'round'"),
        (("--data", "PICTURES", "--set", "bacth=3"), "unknown config key bacth; did you mean batch?"),
        (("--data", "PICTURES", "--set", "device=tpu9"), "allowed: auto, cpu, cuda, cuda:N, mps"),
        (("--preset", "emoji46"), "there is no recipe 'emoji46'; did you mean emoji64?"),
        (("--preset", "quickstart", "--config", "mine.yaml"), "--config and --preset both name a config: give one of them"),
        (("--preset", "quickstart", "--minutes", "5", "--set", "bacth=3"), "unknown config key bacth; did you mean batch?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_one_sentence_before_anything_is_measured(
    arguments: tuple[str, ...], message: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(plan, "pace_on")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, ["train", *(str(pictures) if part == "PICTURES" else part for part in arguments)])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert message in result.output.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
