"""The Python door: training in one call, and what a run gives back."""

import pydoc
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import gan_t2i
from gan_t2i.core.config import read_yaml
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.doctor import plan
from gan_t2i.doctor.dry_run import Pace
from gan_t2i.runs import RunFolder
from gan_t2i.text import weights
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session

SHORT = {"report.stats_kimg": 0.004, "report.grid_prompts": 1, "report.grid_seeds": 1}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replaces measurements: each takes the next of these rates, in images per second."""
    rates = [40.0, 80.0]
    monkeypatch.setattr(plan, "pace_on", lambda config, records: Pace("cpu", 4, config.batch, config.kimg, rates.pop(0), 1.0))
    return rates


@pytest.mark.usefixtures("here", "small_recipe")
def test_pictures_and_minutes_give_a_run(pictures: Path, rates: list[float], said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find_local", lambda: None)
    run = gan_t2i.train(data=pictures, minutes=0.01, settings=SHORT)
    assert isinstance(run, gan_t2i.Run)
    assert run.folder.parent == Path("runs")
    assert [record["nimg"] for record in run.metrics] == [4, 8, 12]
    assert "Loss/G/loss" in run.metrics[-1]
    assert run.finished
    assert repr(run) == f"Run({str(run.folder)!r}, 12 images, finished)"
    (picture,) = run.model(device="cpu").generate("a red circle")
    assert picture.size == (16, 16)
    assert any(line.startswith("recipe: small") for line in said)
    assert (run.folder / "recommended.yaml").is_file()


def test_completion_knows_the_public_names() -> None:
    assert dir(gan_t2i) == sorted(gan_t2i.__all__)


@pytest.mark.parametrize("kind", ["mapping", "config", "file"])
def test_a_config_is_a_mapping_a_config_or_a_file(kind: str, small_config: Callable[..., dict[str, Any]], here: Path) -> None:
    values = small_config(kimg=0.004)
    (here / "mine.yaml").write_text(yaml.safe_dump(values))
    config = {"mapping": values, "config": TrainConfig.parse(values), "file": "mine.yaml"}[kind]
    run = gan_t2i.train(config, seed=np.int64(5), settings=SHORT | {"optimizer.g_lr": 1e-5, "data.holdout_fraction": 0.1}, outdir=here / "out")
    written = TrainConfig.parse(read_yaml(run.folder / "config.yaml"))
    assert (written.kimg, written.seed, written.optimizer.g_lr, written.data.holdout_fraction) == (0.004, 5, 1e-5, 0.1)
    assert run.folder.parent == here / "out"
    assert run.folder.name.startswith("00000-mine" if kind == "file" else "00000-pictures")


def test_a_preset_is_named_and_the_rest_is_on_top(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pictures: Path) -> None:
    taken: list[Any] = []

    def run_training(config: TrainConfig, outdir: Path, **arguments: Any) -> tuple[RunFolder, None]:
        taken.append((config, arguments["description"], arguments["resume"]))
        return RunFolder(outdir), None

    monkeypatch.setattr("gan_t2i.api.run_training", run_training)
    gan_t2i.train("emoji64", data=pictures, kimg=3, outdir=tmp_path, resume="never")
    ((config, description, resume),) = taken
    assert (config.discriminator.name, config.kimg, config.data.source) == ("plain", 3, str(pictures))
    assert (description, resume) == ("emoji64", "never")


def test_an_interrupted_call_saves_raises_and_goes_on(
    small_config: Callable[..., dict[str, Any]], rates: list[float], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_step = Session.run_step

    def run_step_and_interrupt(session: Session, nimg: int) -> Any:
        monkeypatch.setattr(Session, "run_step", run_step)
        signal.raise_signal(signal.SIGINT)
        return run_step(session, nimg)

    monkeypatch.setattr(Session, "run_step", run_step_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        gan_t2i.train(small_config(), minutes=0.01)
    (folder,) = (here / "runs").iterdir()
    assert repr(gan_t2i.Run(folder)) == f"Run({str(folder)!r}, 4 images, unfinished)"
    run = gan_t2i.train(small_config(), minutes=0.01)
    assert run.folder == Path("runs") / folder.name
    assert (run.finished, run.metrics[-1]["nimg"], rates) == (True, 12, [80.0])
    assert gan_t2i.train(small_config(), minutes=0.01, resume=run).folder == run.folder


@pytest.mark.usefixtures("here")
def test_wrong_arguments_are_errors_of_the_project(pictures: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({}, "nothing to train on"),
        ({"config_or_preset": "emoji46"}, "there is no recipe 'emoji46'; did you mean emoji64?"),
        ({"config_or_preset": "missing.yaml"}, "cannot read config missing.yaml"),
        ({"data": pictures, "minutes": 1, "kimg": 1}, "minutes and kimg both set the length"),
        ({"config_or_preset": "quickstart", "settings": {"bacth": 2}}, "unknown config key bacth; did you mean batch?"),
        ({"data": "nowhere"}, "data nowhere does not exist"),
        ({"data": pictures, "seed": 1.5}, "seed 1.5 is not an integer"),
        ({"data": pictures, "seed": "1"}, "seed '1' is not an integer"),
        ({"data": pictures, "seed": True}, "seed True is not an integer"),
        ({"data": pictures, "kimg": float("nan")}, "kimg = nan is not a finite number"),
        ({"data": pictures, "minutes": "60"}, "minutes = '60' is not a finite number"),
        ({"data": pictures, "minutes": -1}, "^minutes must be above 0, not -1"),
        ({"data": pictures, "settings": ["batch"]}, "^settings must map dotted keys to values, not ..batch"),
        ({"data": pictures, "settings": {"decoder": {(1, 2): 3}}}, "^settings cannot be written as JSON: "),
        ({"config_or_preset": 5}, "there is no recipe '5'"),
        ({"config_or_preset": "quickstart", "outdir": None}, "^outdir None is not a path"),
    ):
        with pytest.raises(UsageError, match=message.replace("?", "[?]")):
            gan_t2i.train(**arguments)
    with pytest.raises(UsageError, match="there is no run folder runs/1"):
        gan_t2i.Run("runs/1")
    with pytest.raises(UsageError, match="folder 1 is not a path"):
        gan_t2i.Run(1)  # type: ignore[arg-type]
    with pytest.raises(GanT2IError, match="is no run folder"):
        gan_t2i.Run(tmp_path).model()
    assert list(tmp_path.iterdir()) == []


def test_help_shows_an_example_and_every_argument() -> None:
    text = pydoc.render_doc(gan_t2i.train, renderer=pydoc.plaintext)
    assert 'gan_t2i.train(data="my_pictures", minutes=30)' in text
    for name in ("config_or_preset", "data", "minutes", "kimg", "seed", "settings", "outdir", "resume"):
        assert f"{name}: " in text.split("Args:")[1]
    assert "metrics" in pydoc.render_doc(gan_t2i.Run, renderer=pydoc.plaintext)
