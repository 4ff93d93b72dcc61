"""From a request to a config: what counts for its identity, and several processes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import together

from gan_t2i.core.config import read_yaml
from gan_t2i.core.errors import UsageError
from gan_t2i.doctor.plan import Request, make_plan
from gan_t2i.runs import RunFolder
from gan_t2i.training.config import TrainConfig


def test_settings_on_top_beat_the_config_and_options_beat_changes() -> None:
    base = {"batch": 1, "seed": 1, "data": {"crop": "pad"}}
    request = Request(base, ("batch=2", "seed=2", "data.alpha=true"), {"seed": 3, "data": {"source": "x"}})
    assert request.apply(base) == {"batch": 2, "seed": 3, "data": {"crop": "pad", "alpha": True, "source": "x"}}
    assert base == {"batch": 1, "seed": 1, "data": {"crop": "pad"}}
    assert Request(None, (), {"data": {"source": "x"}}).apply({"data": 3}) == {"data": 3}


def test_a_request_survives_its_file() -> None:
    request = Request(None, ("batch=2",), {"data": {"source": "x"}, "seed": 3}, 5.0)
    assert json.loads(json.dumps(request.to_json())) == request.to_json()


def test_only_minutes_and_missing_configs_are_measured() -> None:
    requests = [Request(base, (), {}, minutes) for base, minutes in (({}, None), ({}, 5), (None, None), (None, 5))]
    assert [request.is_measured for request in requests] == [False, True, True, True]


def test_a_request_is_shown_as_the_command_that_repeats_it() -> None:
    request = Request(None, ("batch=2",), {"data": {"source": "my pictures", "alpha": True}, "report": {"keep": 3}, "seed": 4}, 5.0)
    settings = "--set batch=2 --set data.alpha=true --set report.keep=3 --set seed=4"
    assert request.command() == f"gan-t2i train --data 'my pictures' --minutes 5 {settings}"
    assert Request(None, (), {"data": {"source": "x"}}).command() == "gan-t2i train --data x --minutes 60"
    assert Request(None, ("data.source=x",), {"kimg": 2.0}).command() == "gan-t2i train --set data.source=x --set kimg=2.0"


def test_a_run_that_begins_with_another_has_its_config_and_own_data(
    trained: RunFolder, pictures: Path, small_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    options = {"data": {"source": str(pictures)}, "init": str(trained.path), "kimg": 0.1, "seed": 7}
    theirs, ours = TrainConfig.parse(read_yaml(trained.config)), make_plan(Request(None, (), options)).config
    assert ours.generator == theirs.generator
    assert (ours.kimg, ours.seed, ours.init, ours.data.source) == (0.1, 7, str(trained.path), str(pictures))
    packaged = make_plan(Request(None, (), {**options, "init": "pretrained:shapes64"})).config
    assert (packaged.resolution, packaged.generator.name, packaged.data.source) == (64, "style", str(pictures))
    assert make_plan(Request(None, (), {key: options[key] for key in ("data", "init")}, 0.01)).config.kimg < 1


def test_a_run_that_begins_with_another_needs_its_config_and_data(trained: RunFolder, pictures: Path, tmp_path: Path) -> None:
    copied = shutil.copy(trained.snapshots()[-1], tmp_path / "own.safetensors")
    with pytest.raises(UsageError, match=r"init .*own.safetensors: a snapshot outside of a run folder does not say how it was trained"):
        make_plan(Request(None, (), {"data": {"source": str(pictures)}, "init": str(copied)}))
    with pytest.raises(UsageError, match="nothing to train on"):
        make_plan(Request(None, (), {"init": str(trained.path)}))


def plan_of(values: dict[str, Any]) -> TrainConfig:
    return make_plan(Request(values, (), {}, 0.05)).config


def test_several_processes_measure_together_and_agree(small_config: Callable[..., dict[str, Any]]) -> None:
    first, second = together(plan_of, small_config(kimg=0.04321, terms={"caption": {"weight": 1, "kimg": 0.1, "batch": 4}}))
    assert isinstance(first, TrainConfig), first
    assert first == second
    assert first.kimg != 0.04321  # a measured length has two digits


def test_streamed_data_are_measured_too(small_config: Callable[..., dict[str, Any]], pictures: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in sorted(pictures.glob("*.png")):
            (tmp_path / "caption.txt").write_text(path.stem)
            tar.add(path, path.name)
            tar.add(tmp_path / "caption.txt", f"{path.stem}.txt")
    values = small_config(data={"source": str(tmp_path / "0.tar"), "stream": True})
    assert make_plan(Request(values, (), {}, 0.01)).config.data.stream
