"""The measurements of training, except for the times themselves."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_t2i.core.graphs import Replay
from gan_t2i.core.phases import REST, PhaseTimer
from gan_t2i.doctor import train_speed
from gan_t2i.doctor.flops import Call, FlopCounter, Layout
from gan_t2i.doctor.train_speed import SHARES, ceilings_of, measure_training, shares, split_penalty, temporary_loop
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session, prepare

CPU = torch.device("cpu")


@pytest.fixture
def session(small_config: Callable[..., dict[str, Any]]) -> Session:
    return prepare(TrainConfig.parse(small_config(penalty={"interval": 2})))


def test_a_training_is_measured(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    speed = measure_training(session, steps=3, repeats=2)
    assert speed.steps == 4  # whole intervals
    assert speed.eager_images_per_second is None  # none are captured
    assert 0 < speed.slowest <= speed.images_per_second <= speed.fastest
    assert list(speed.shares) == list(SHARES)
    assert sum(speed.shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in speed.shares.values())
    with FlopCounter() as counter:
        session.run_step(0)
        session.run_step(4)
    assert speed.gflop_per_image == pytest.approx(counter.total / 8 / 1e9)
    assert speed.gflop_per_second == pytest.approx(speed.gflop_per_image * speed.images_per_second)
    # one step's operations, by kind and together
    assert speed.ceiling.gflop == pytest.approx(4 * speed.gflop_per_image)
    assert sum(value.gflop for value in speed.ceilings.values()) == pytest.approx(speed.ceiling.gflop)
    assert sum(value.seconds for value in speed.ceilings.values()) == pytest.approx(speed.ceiling.seconds)
    assert {"convolution float32", "matmul float32"} <= set(speed.ceilings)
    assert speed.peak_memory_gib > 0.01
    values = json.loads(json.dumps(asdict(speed)))
    assert values["share_of_limit"] == pytest.approx(speed.gflop_per_second / values["ceiling"]["rate"])
    # nothing is left behind, and no progress bar was drawn
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


class Repeated:
    """A backend that calls the captured functions again."""

    def warm_up(self, function: Callable[[], object]) -> None:
        function()

    def capture(self, function: Replay) -> Replay:
        return function


def test_eager_steps_are_timed_beside_captured_ones(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan_t2i.doctor.flops.TIMED_SECONDS", 1e-4)
    session.step.capture_with(Repeated())

    def seconds(work: Callable[[], object], device: torch.device) -> float:
        work()
        assert session.step.captured is not None
        return 8.0 if session.step.captured.paused else 2.0  # for two steps of four images

    monkeypatch.setattr(train_speed, "seconds_of", seconds)
    speed = measure_training(session, steps=2, repeats=1)
    assert speed.eager_images_per_second is not None
    # beside the steps there is a share of a tick
    assert 4 / speed.eager_images_per_second - 4 / speed.images_per_second == pytest.approx(3)


def test_every_phase_of_a_step_is_counted(session: Session) -> None:
    with temporary_loop(session) as loop, PhaseTimer(CPU) as timer:
        loop.run(4)
        loop.tick()
    assert loop.nimg == 16
    assert loop.report.bar.disable  # the report is closed
    known = [part for parts in SHARES.values() for part in parts]
    assert len(known) == len(set(known))
    assert set(timer.calls) == set(known) - {"captioner"}  # whose term is off
    assert {name: timer.calls[name] for name in ("data", "text", "G forward", "D forward", "G backward", "EMA")} == dict.fromkeys(
        ("data", "text", "G forward", "D forward", "G backward", "EMA"), 4
    )
    assert (timer.calls["penalty"], timer.calls["D backward with penalty"], timer.calls["D backward"]) == (2, 2, 2)


def test_the_penalty_is_what_its_steps_take_longer() -> None:
    timer = PhaseTimer(CPU)
    timer.seconds |= {"D backward": 6.0, "D backward with penalty": 5.0, "penalty": 1.0}
    timer.calls.update({"D backward": 3, "D backward with penalty": 1})
    assert split_penalty(timer) == {"D backward": 6.0, "D backward with penalty": 2.0, "penalty": 4.0}
    assert timer.seconds["penalty"] == 1.0
    # with nothing to compare with, all of it stays D's
    every = PhaseTimer(CPU)
    every.seconds |= {"D backward with penalty": 5.0, "penalty": 1.0}
    every.calls.update({"D backward with penalty": 1})
    assert split_penalty(every) == {"D backward with penalty": 5.0, "penalty": 1.0}


def test_shares_are_of_medians() -> None:
    repeats = [{"data": seconds, "G forward": 1.0, "G backward": 2.0, "logging": 0.5, REST: 1.0} for seconds in (1.0, 2.0, 90.0)]
    found = shares(repeats, tick=1.5)
    assert found == {"data": 0.25, "text": 0, "G step": 0.375, "D step": 0, "penalty": 0, "EMA": 0, "logging": 0.25, REST: 0.125}
    with pytest.raises(AssertionError, match=r"no share counts: .'new'"):
        shares([{"new": 1.0}], tick=0.0)


def test_ceilings_are_a_steps() -> None:
    layout = Layout((1,), (1,), torch.bfloat16, CPU)
    conv, product = Call("convolution", (layout,), (), 4 * 10**9), Call("mm", (layout,), (), 10**9)
    repeats = [{conv: seconds, product: 1.0} for seconds in (2.0, 3.0, 50.0)]
    kinds, whole = ceilings_of({conv: 2, product: 4}, repeats, steps=2)
    assert {kind: (value.gflop, value.seconds) for kind, value in kinds.items()} == {"convolution bfloat16": (4, 3), "matmul bfloat16": (2, 2)}
    assert (whole.gflop, whole.seconds) == (6, 5)
