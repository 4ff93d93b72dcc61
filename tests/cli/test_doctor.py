"""``gan-t2i doctor``: it tells what is missing, fails only where training cannot work, and writes configs that training takes."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from gan_t2i.cli.main import command
from gan_t2i.core.config import read_yaml
from gan_t2i.core.files import cache_dir
from gan_t2i.core.threads import HOW_TO_WAIT
from gan_t2i.doctor import dry_run as estimate
from gan_t2i.doctor import machine
from gan_t2i.doctor.dry_run import Pace
from gan_t2i.text import weights
from gan_t2i.training.config import TrainConfig


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(command, ["doctor", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _no_quickstart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests need no measurement of seconds."""
    monkeypatch.setattr(estimate, "pace_of_quickstart", lambda: Pace("cpu", 4, 16, 15, rate=100, peak_gib=1))


@pytest.fixture
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find_local", lambda: None)


def test_every_check_has_a_line() -> None:
    result = doctor()
    assert result.exit_code == 0, result.output
    states = dict(line.split()[1::-1] for line in result.output.splitlines() if line.startswith(("ok ", "warning ", "missing ")))
    assert set(states) >= {
        "versions",
        "device",
        "arithmetic",
        "bfloat16",
        "threads",
        "disk",
        "text",
        "TensorBoard",
        "optional",
        "emoji",
        "quickstart",
    }
    assert states["arithmetic"] == states["versions"] == "ok"
    assert "check failed" not in result.output
    assert "training works here" in result.output


def test_it_loads_no_library_of_seconds_and_torch_s_threads_soon_sleep() -> None:
    program = (
        "import atexit, sys; from gan_t2i.cli.main import main; from gan_t2i.doctor import machine\n"
        "machine._quickstart = lambda: ('ok', 'takes seconds'); atexit.register(lambda: print(sorted(sys.modules))); main()"
    )
    environment = {name: value for name, value in os.environ.items() if name not in HOW_TO_WAIT} | {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", program, "doctor"], env=environment, capture_output=True, text=True, check=True)
    shown = done.stdout
    assert "training works here" in shown
    if sys.platform == "linux":  # where torch comes with GNU's OpenMP, which shows its settings when it is loaded
        assert "GOMP_SPINCOUNT = '3000'" in done.stderr
    for slow in ("'sentence_transformers'", "'datasets'", "'tensorboard'", "'torchvision'"):
        assert slow not in shown


@pytest.mark.usefixtures("no_encoder")
def test_what_is_missing_is_said_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "version_of", lambda package: None if package == "datasets" else "1.0")
    monkeypatch.setattr("gan_t2i.data.builtin.emoji_font._font_folders", lambda: [tmp_path])
    result = doctor()
    assert result.exit_code == 0
    lines = {line.split()[1]: line for line in result.output.splitlines() if line.startswith("missing")}
    assert 'pip install "gan-t2i[offline]"' in lines["text"]
    assert 'datasets (for hf:owner/name): pip install "gan-t2i[data]"' in lines["optional"]
    assert "fonts-noto-color-emoji" in lines["emoji"]


def test_a_check_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> machine.Check:
        raise RuntimeError("the driver\nis ill")

    monkeypatch.setattr(machine, "_device", broken)
    result = doctor()
    assert result.exit_code == 0
    assert "check failed: the driver is ill" in result.output


@pytest.mark.parametrize(
    ("threads", "busy", "said"),
    [(1, 1.1, "keep 1.1 of 2 cores busy"), (2, 1.1, "torch uses 2 of 2 cores"), (1, 0.3, "OMP_NUM_THREADS=2"), (2, 0.3, None)],
)
def test_it_says_where_other_programs_keep_the_cores_busy(threads: int, busy: float, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("gan_t2i.core.threads._own_cores", lambda: {0, 1})
    monkeypatch.setattr("gan_t2i.core.threads.busy_cores", lambda: busy)
    monkeypatch.setattr(machine, "busy_cores", lambda: busy)
    state, text = machine._threads()
    assert state == ("warning" if said else "ok")
    assert (said or "torch uses 2 threads") in text


def test_it_says_how_long_the_quickstart_takes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    pace = estimate.pace_of_quickstart()
    assert (pace.kimg, pace.batch, pace.pretraining.keys()) == (12, 16, {"autoencoder"})
    monkeypatch.setattr(estimate, "pace_of_quickstart", lambda: replace(pace, rate=50, pretraining={"autoencoder": 2}))
    assert machine.examine()["quickstart"] == ("ok", "about 6 minutes here, at 50 img/s on cpu, and on first use one more for its data")


@pytest.mark.parametrize("fault", ["package", "arithmetic"])
def test_the_exit_code_is_one_where_training_cannot_work(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise RuntimeError("no kernel image")

    if fault == "package":
        version_of = machine.version_of
        monkeypatch.setattr(machine, "version_of", lambda package: None if package == "torchvision" else version_of(package))
    else:
        monkeypatch.setattr(machine, "_penalty_step", broken)
    result = doctor("--data", "nowhere")
    assert result.exit_code == 1
    assert f"training cannot work here: {'versions' if fault == 'package' else fault}" in result.output
    assert ("pip install torchvision" if fault == "package" else "no kernel image") in result.output


@pytest.mark.usefixtures("no_encoder", "small_recipe")
def test_it_writes_a_config_that_train_takes(
    pictures: Path, small_config: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(small_config(batch=6)))
    before = sorted(cache_dir().rglob("*"))
    result = doctor("--config", tmp_path / "mine.yaml", "--write", tmp_path / "my new.yaml", "--caption-column", "text")
    assert result.exit_code == 0, result.output
    assert sorted(cache_dir().rglob("*")) == before
    assert "12 usable pairs, 24 captions; 2 pairs held out" in result.output
    assert "12 pictures are too few for an autoencoder, which needs 64\n" in result.output
    assert "steps of 6 pictures" in result.output  # the named config
    assert f"next: gan-t2i train --config '{tmp_path / 'my new.yaml'}'" in result.output
    config = TrainConfig.parse(read_yaml(tmp_path / "my new.yaml"))
    assert (config.resolution, config.data.source, config.data.caption_column) == (16, str(pictures), "text")
    text = (tmp_path / "my new.yaml").read_text()
    assert "img/s, measured here" in text
    assert "recommended: small, " in result.output
    assert text.startswith("# gan-t2i train --config")
    taken: list[TrainConfig] = []
    monkeypatch.setattr(estimate, "dry_run_report", lambda config: taken.append(config))
    assert CliRunner().invoke(command, ["train", "--config", str(tmp_path / "my new.yaml"), "--dry-run"]).exit_code == 0
    assert taken == [config]


def test_it_refuses_before_it_measures(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("kimg: 1\nbacth: 2\n")
    assert "--write needs --data, --config or --preset" in doctor("--write", tmp_path / "new.yaml").output
    again = doctor("--data", pictures, "--write", tmp_path / "there.yaml")
    assert (again.exit_code, "name a new file" in again.output) == (2, True)
    nowhere = doctor("--data", pictures, "--write", tmp_path / "there.yaml" / "new.yaml")
    assert (nowhere.exit_code, nowhere.stdout, "cannot write" in nowhere.stderr) == (2, "", True)
    wrong = doctor("--config", tmp_path / "there.yaml")
    assert wrong.exit_code == 2
    assert "did you mean batch?" in wrong.output
    assert doctor("--data", tmp_path / "missing").exit_code == 2


def test_a_recipe_is_measured_on_the_data_that_it_names(
    pictures: Path, small_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace("cpu", 4, 16, 52, rate=100, peak_gib=1, pretraining={"caption": 3})
    measured: list[TrainConfig] = []
    monkeypatch.setattr(estimate, "pace_on", lambda config, records: measured.append(config) or pace)
    result = doctor("--preset", "quickstart", "--data", pictures)
    assert result.exit_code == 0, result.output
    assert "quickstart\nestimate on cpu, from 4 steps of 16 pictures: 100 img/s, 9 minutes for 52 kimg" in result.output
    assert (
        "recommended: emoji64_resnet, 340 kimg, about 57 minutes at 100 img/s, measured here, besides 3 minutes of other training, "
        in result.output
    )
    assert [config.data.source for config in measured] == [str(pictures)] * 2
    assert doctor("--preset", "quikstart").output.endswith("there is no recipe 'quikstart'; did you mean quickstart?\n")
