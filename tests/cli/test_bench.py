"""``gan-t2i bench`` from config files to the table, JSON and a trace."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from gan_t2i.cli.main import command
from gan_t2i.doctor.train_speed import SHARES

PHASES = {part for parts in SHARES.values() for part in parts} - {"rest", "captioner"} | {"sample"}


@pytest.fixture
def config(small_config: Callable[..., Any], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    values = small_config(penalty={"interval": 2}, device="cuda:99")  # which --device has to beat
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own rates take seconds and are tested elsewhere."""
    monkeypatch.setattr("gan_t2i.doctor.bench.convolution_rate", lambda device, precision: 1000.0)
    monkeypatch.setattr("gan_t2i.doctor.bench.matmul_rate", lambda device, dtype: 500.0)
    monkeypatch.setattr("gan_t2i.doctor.flops.TIMED_SECONDS", 1e-4)


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(command, ["bench", *map(str, arguments), "--steps", "2", "--repeats", "1", "--device", "cpu"])


def test_configs_side_by_side(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(config.read_text(), encoding="utf-8")
    result = bench(config, other, "--set", "batch=2", "--json", tmp_path / "told" / "bench.json")
    assert result.exit_code == 0, result.output
    heads = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert [line.split(": ")[0] for line in heads] == [str(config), str(other)]
    assert all("16 px, batch 2, 2 steps a repeat, on cpu" in line for line in heads)
    values = json.loads((tmp_path / "told" / "bench.json").read_text())
    assert values["repeats"] == 1
    assert [entry["name"] for entry in values["configs"]] == [str(config), str(other)]
    for entry, table in zip(values["configs"], result.stdout.split(str(other)), strict=True):
        assert entry["config"]["batch"] == 2
        assert f"G {entry['parameters']['G']:,} parameters, D {entry['parameters']['D']:,} parameters" in table
        training, sampling = entry["training"], entry["sampling"]
        assert f"{training['images_per_second']:.4g} img/s" in table
        assert f"{training['gflop_per_image']:.3g} GFLOP per picture" in table
        assert f"{training['share_of_limit']:.0%} of it reached" in table
        assert all(f"{name} {share:.1%}" in table for name, share in training["shares"].items())
        assert sum(training["shares"].values()) == pytest.approx(1)
        assert "convolution float32 1000 GFLOP/s" in table
        assert entry["machine_gflop_per_second"]["matmul float32"] == 500
        assert f"then {sampling['warm'] * 1000:.3g} ms (encoder" in table
        assert f"{sampling['known'] * 1000:.3g} ms from a known prompt\n" in table
        assert f"then {sampling['batch_warm'] * 1000:.3g} ms\n" in table
        assert f"{training['peak_memory_gib']:.2f} GiB at the peak" in table
    assert not (tmp_path / "runs").exists()


def test_a_trace_names_the_phases(config: Path, tmp_path: Path) -> None:
    (tmp_path / "trace.json").touch()
    result = bench(config, "--profile", tmp_path / "trace.json")
    assert result.exit_code == 0, result.output
    assert "trace.json exists and is replaced" in result.stderr
    assert f"written: {tmp_path / 'trace.json'}" in result.stderr
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    found = Counter(event["name"] for event in events if str(event.get("name")).startswith("gan_t2i/"))
    assert set(found) == {f"gan_t2i/{part}" for part in PHASES} - {"gan_t2i/captioner"}  # there is no caption loss
    # two steps, one of them with a penalty, and a tick
    assert (found["gan_t2i/data"], found["gan_t2i/penalty"], found["gan_t2i/logging"]) == (2, 1, 3)


def test_refusals(config: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ([tmp_path / "none.yaml"], f"Error: cannot read config {tmp_path / 'none.yaml'}: No such file or directory\n"),
        # the second is looked at before the first is run
        ([config, tmp_path / "none.yaml"], f"Error: cannot read config {tmp_path / 'none.yaml'}: No such file or directory\n"),
        (["quikstart"], "Error: there is no recipe 'quikstart'; did you mean quickstart?\n"),
        ([config, "--set", "batsh=2"], "Error: unknown config key batsh; did you mean batch?\n"),
        ([config, "--set", "data=3"], "Error: config key data = 3"),
        ([config, config, "--profile", tmp_path / "t.json"], "--profile traces one config: name a single one\n"),
        ([config, "--data", tmp_path / "nowhere"], "nowhere"),
        ([], "Missing argument 'CONFIG...'"),
    ):
        result = bench(*arguments)
        assert result.exit_code == 2, arguments
        assert said in result.stderr
        assert result.stdout == ""


def test_a_file_that_cannot_be_written(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = bench(config, "--json", tmp_path / "file" / "x.json")
    assert result.exit_code == 2
    assert f"cannot write {tmp_path / 'file' / 'x.json'}" in result.stderr
    assert result.stdout == ""  # nothing is measured for it
