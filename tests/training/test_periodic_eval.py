"""The benchmark during training: at the chosen nimg, with the command's numbers, and without a trace in what is learned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gan_t2i.cli.main import command
from gan_t2i.core.errors import UsageError
from gan_t2i.runs import RunFolder
from gan_t2i.training.config import TrainConfig

EVALUATE = {"suite": "shapes", "kimg": 0.016, "limit": 2, "seeds": 1}
TAGS = [f"Metrics/shapes/{task}" for task in ("single", "colours", "position", "two", "relations", "counting")]


@pytest.fixture(scope="module")
def evaluated(small_config: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The small config's run with evaluations after 16, 32 and 40 pictures; snapshots after 20 and 40."""
    from gan_t2i.training.run import run_training

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_T2I_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        config = TrainConfig.parse(small_config(evaluate=EVALUATE))
        return run_training(config, tmp_path_factory.mktemp("evaluated"), resume="never", description="e")[0]


def read(run: RunFolder, nimg: int) -> dict[str, Any]:
    return dict(json.loads((run.path / "evaluation" / f"shapes-{nimg:09d}-limit2-seeds1.json").read_text()))


def test_at_the_chosen_nimg_into_one_event_file(evaluated: RunFolder) -> None:
    assert sorted(path.name for path in (evaluated.path / "evaluation").iterdir()) == [
        f"shapes-{nimg:09d}-limit2-seeds1.{kind}" for nimg in (16, 32, 40) for kind in ("json", "png")
    ]
    assert len(list(evaluated.path.glob("events.out.tfevents.*"))) == 1
    events = EventAccumulator(str(evaluated.path)).Reload()
    lines = [json.loads(line) for line in evaluated.stats.read_text().splitlines()]
    for tag in TAGS:
        scores = [read(evaluated, nimg)["tasks"][tag.rsplit("/")[-1]]["score"] for nimg in (16, 32, 40)]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == list(zip((16, 32, 40), scores, strict=True))
        assert [(line["nimg"], line[tag]) for line in lines if tag in line] == list(zip((16, 32, 40), scores, strict=True))
    assert read(evaluated, 32)["snapshot"] is None
    assert read(evaluated, 40)["snapshot"] == str(evaluated.snapshot(40))


def test_the_command_finds_the_same(evaluated: RunFolder, tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "a.json"), "--sheet", str(tmp_path / "a.png")]
    result = CliRunner().invoke(command, ["evaluate", "shapes", str(evaluated.snapshot(40)), "--limit", "2", "--seeds", "1", *files])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "a.json").read_text()) == read(evaluated, 40)
    ours = evaluated.path / "evaluation" / "shapes-000000040-limit2-seeds1.png"
    with Image.open(tmp_path / "a.png") as theirs, Image.open(ours) as mine:
        assert theirs.tobytes() == mine.tobytes()  # the failures' pictures, bit for bit


def test_training_does_not_notice(evaluated: RunFolder, trained: RunFolder, assert_same_state: Callable[..., None]) -> None:
    assert_same_state(evaluated, trained)


def test_its_time_is_no_training(evaluated: RunFolder, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that an evaluation moves on by an hour."""
    from gan_t2i.training import loop, report

    hours = 0
    clock, before = report.time.perf_counter, loop.evaluate

    def slow(*args: Any) -> None:
        nonlocal hours
        hours += 1
        before(*args)

    monkeypatch.setattr(report.time, "perf_counter", lambda: clock() + 3600 * hours)
    monkeypatch.setattr(loop, "evaluate", slow)
    folder, _ = start(evaluate={**EVALUATE, "kimg": 0.02})
    lines = [json.loads(line) for line in folder.stats.read_text().splitlines()]
    rates = {line["nimg"]: line["Timing/img_per_sec"] for line in lines if "Timing/img_per_sec" in line}
    assert hours == 2
    assert min(rates.values()) > 0.1  # four pictures in an hour are 0.001


def test_refuses_a_limit_that_has_no_chance() -> None:
    with pytest.raises(UsageError, match=r"evaluate\.limit = 1: "):
        TrainConfig.parse({"evaluate": {"limit": 1}})
