"""``gan-t2i train`` from the config file to the run folder."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from gan_t2i.checkpoint import read_tensors
from gan_t2i.cli.main import command
from gan_t2i.core.config import read_yaml
from gan_t2i.runs import RunFolder, list_runs


@pytest.fixture
def train(small_config: Callable[..., Any], tmp_path: Path) -> Callable[..., Result]:
    """Runs the command on the small config, shortened to two steps, in tmp_path/runs."""
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(small_config(kimg=0.008)), encoding="utf-8")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(command, ["train", "--config", str(config), "--outdir", str(tmp_path / "runs"), *map(str, arguments)])

    return run


def test_it_trains_and_says_what_comes_next(train: Callable[..., Result], tmp_path: Path) -> None:
    result = train()
    assert result.exit_code == 0, result.output
    folder = RunFolder(tmp_path / "runs" / "00000-tiny")
    assert f"run folder: {folder.path}  (losses and pictures: tensorboard --logdir {tmp_path / 'runs'})" in result.output
    assert f"done: {folder.snapshot(8)}" in result.output
    assert f"try: gan-t2i sample {folder.path} -p" in result.output
    assert "12 usable pairs with 24 captions (2 pairs held out)" in result.output
    assert "text encoder: tiny" in result.output
    assert read_tensors(folder.state)[1]["nimg"] == 8
    # and what it suggests works
    shown = CliRunner().invoke(command, ["sample", str(folder.path), "-p", "a red circle", "--grid", str(tmp_path / "out.png")])
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "out.png").is_file()


def test_options_beat_set_beats_the_file(train: Callable[..., Result], pictures: Path, tmp_path: Path) -> None:
    options = ["--set", "batch=2", "--set", "optimizer.g_lr=2e-4", "--set", "kimg=5", "--set", "seed=1", "--set", "data.source=nowhere"]
    result = train(*options, "--kimg", 0.004, "--seed", 7, "--desc", "My Run!", "--data", pictures)
    assert result.exit_code == 0, result.output
    (folder,) = list_runs(tmp_path / "runs")
    assert folder.path.name == "00000-my-run"
    values = read_yaml(folder.config)
    assert (values["kimg"], values["seed"], values["batch"], values["data"]["source"]) == (0.004, 7, 2, str(pictures))
    rates = {"g_lr": 2e-4, "d_lr": 3e-4, "warmup_kimg": 0.0, "cooldown_kimg": 0.0}
    assert values["optimizer"] == {**rates, "beta1": 0.0, "beta2": 0.99, "g_orthogonal": False}
    assert read_tensors(folder.state)[1]["nimg"] == 4


def test_resume(train: Callable[..., Result], tmp_path: Path) -> None:
    assert train("--kimg", 0.004).exit_code == 0
    (folder,) = list_runs(tmp_path / "runs")
    result = train("--resume", folder.path)
    assert result.exit_code == 0, result.output
    assert f"going on with {folder.path} after 4 images" in result.output
    assert list_runs(tmp_path / "runs") == [folder]
    assert read_tensors(folder.state)[1]["nimg"] == 8
    assert train("--resume", "never").exit_code == 0
    assert len(list_runs(tmp_path / "runs")) == 2


def test_dry_run(train: Callable[..., Result], tmp_path: Path) -> None:
    result = train("--dry-run", "--kimg", 1000)
    assert result.exit_code == 0, result.output
    assert "12 usable pairs with 24 captions (2 pairs held out)" in result.output
    for name, kind, parts in (("generator", "style", "mapping"), ("discriminator", "resnet", "head")):
        (total,) = re.findall(rf"^{name} {kind}: ([\d,]+) parameters$", result.output, re.MULTILINE)
        table = result.output.split(f"{name} {kind}:")[1]
        assert int(total.replace(",", "")) > 1000
        assert re.search(rf"^  {parts} +\w+ +[\d,]+  \S", table, re.MULTILINE)
        assert re.search(r"^  text_head +TextHead +[\d,]+  \S", table, re.MULTILINE)
    (estimate,) = re.findall(
        r"^estimate on \S+, from \d steps of 4 pictures: (\d+) img/s, (\d+) minutes for 1000 kimg, ([\d.]+) GiB", result.output, re.MULTILINE
    )
    rate, minutes, memory = map(float, estimate)
    assert minutes == pytest.approx(1e6 / rate / 60, rel=0.1)
    assert 0.1 < memory < 100
    assert "nothing was trained" in result.output
    assert not (tmp_path / "runs").exists()
