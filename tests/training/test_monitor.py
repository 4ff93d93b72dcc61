"""The monitor finds failures, and a run rolls back with lower rates, a limited number of times."""

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_t2i.checkpoint import read_tensors
from gan_t2i.core.errors import GanT2IError
from gan_t2i.runs import RunFolder, list_runs
from gan_t2i.training import loop
from gan_t2i.training import monitor as monitor_module
from gan_t2i.training import session as session_module
from gan_t2i.training.config import MonitorConfig, TrainConfig
from gan_t2i.training.monitor import DISTANCE, DIVERSITY, SIGNS, Failure, Monitor, diversity, mean_distance
from gan_t2i.training.run import run_training
from gan_t2i.training.session import Session

WELL = {"Loss/G/loss": 1.0, SIGNS: 0.5, DIVERSITY: 0.8}
REPORT = {"stats_kimg": 0.004, "grid_kimg": 1, "snapshot_kimg": 0.008, "grid_prompts": 1, "grid_seeds": 1}
Start = Callable[..., tuple[RunFolder, int | None]]


def verdicts(*ticks: dict[str, float], patience: float = 2.0) -> list[Failure | None]:
    """Return the monitor's verdicts at one tick per kimg."""
    monitor = Monitor(MonitorConfig(patience_kimg=patience))
    return [monitor.check(1000 * number, {**WELL, **tick}) for number, tick in enumerate(ticks)]


def test_a_number_that_is_not_finite_is_wrong_at_once() -> None:
    (failure,) = verdicts({"Gradient/G": math.inf, "Loss/G/loss": math.nan})
    assert failure is not None
    assert failure == ("Loss/G/loss, Gradient/G is not finite", False)


def test_pixels_that_run_away_are_wrong_at_once() -> None:
    """The two numbers that a run with twice the rates of configs/studies/around_recipe/base.yaml had after 2,000 and 3,000 images."""
    assert verdicts({DISTANCE: 0.58}, {DISTANCE: 39.0}) == [None, None]
    (failure,) = verdicts({DISTANCE: 2047.44})
    assert failure == ("outputs have exploded: Loss/G/distance is 2.05e+03, where black and white are 4 apart", False)


@pytest.mark.parametrize(("name", "bad", "fair"), [(SIGNS, 1.0, 0.99), (DIVERSITY, 0.09, 0.11)])
def test_other_numbers_are_wrong_after_the_patience_alone(name: str, bad: float, fair: float) -> None:
    *before, last = verdicts({}, {name: bad}, {name: bad}, {name: bad})
    assert before == [None, None, None]
    assert last is not None
    assert f"{name} is {bad:g}, and has been as bad since 1,000 images" in last.what
    assert last.suspected
    assert verdicts(*[{name: bad}, {name: bad}, {name: fair}] * 3) == [None] * 9
    assert verdicts(*[{name: fair}] * 9) == [None] * 9


def test_a_doubt_outlives_a_stop() -> None:
    first = Monitor(MonitorConfig(patience_kimg=2))
    assert first.check(1000, {**WELL, SIGNS: 1.0}) is None
    assert first.suspect_since == {SIGNS: 1000}
    assert Monitor(MonitorConfig(patience_kimg=2), first.suspect_since).check(3000, {**WELL, SIGNS: 1.0}) is not None


def test_diversity(make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    assert mean_distance(torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.5)])) == pytest.approx(0.5)
    session = make_session()
    G = session.networks.G_ema
    before = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    value = diversity(session)
    assert value == diversity(session) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in G.state_dict().items())
    reals = session.sampler.batch(0, 16).images / 127.5 - 1
    monkeypatch.setattr(type(G), "forward", lambda self, z, text: reals)
    assert diversity(session) == pytest.approx(1)
    monkeypatch.setattr(type(G), "forward", lambda self, z, text: reals[:1].expand_as(reals))
    assert diversity(session) == pytest.approx(0, abs=1e-6)


@pytest.fixture
def fail_above(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], list[float]]:
    """Puts a NaN into G at `nimg` as long as its learning rate is above a limit; returns the rates that came by there."""

    def plan(nimg: int, limit: float) -> list[float]:
        rates: list[float] = []
        run_step = Session.run_step

        def run(session: Session, at: int) -> dict[str, torch.Tensor]:
            if at == nimg:
                rates.append(session.config.optimizer.g_lr * session.step.rate_scale)
                if rates[-1] > limit:
                    next(session.networks.G.parameters()).data.fill_(math.nan)
            return run_step(session, at)

        monkeypatch.setattr(Session, "run_step", run)
        return rates

    return plan


def test_it_goes_back_with_lower_rates_until_it_goes_well(start: Start, fail_above: Callable[..., Any], tmp_path: Path) -> None:
    rates = fail_above(20, 1e-4)
    folder, stopped_by = start(report=REPORT)
    assert stopped_by is None
    assert rates == [3e-4, 1.5e-4, 0.75e-4]
    tensors, metadata = read_tensors(folder.state)
    assert (metadata["nimg"], metadata["rollbacks"]) == (40, 2)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    records = [json.loads(line) for line in folder.stats.read_text().splitlines()]
    assert [record["nimg"] for record in records] == list(range(4, 41, 4))
    assert [record["Progress/lr_g"] for record in records] == [3e-4] * 4 + [0.75e-4] * 6


def test_it_stops_after_the_last_time_and_says_what_it_saw(start: Start, fail_above: Callable[..., Any], tmp_path: Path) -> None:
    rates = fail_above(20, 0)
    with pytest.raises(GanT2IError) as error:
        start(report=REPORT)
    assert len(rates) == 4
    (folder,) = list_runs(tmp_path / "runs")
    for part in ("at 24 images", "is not finite", "it rolled back 3 times", str(folder.snapshot(16)), "optimizer.d_lr"):
        assert part in str(error.value)
    # and the same command does not begin to count anew
    with pytest.raises(GanT2IError, match="it rolled back 3 times"):
        start(report=REPORT)
    assert len(rates) == 5
    assert rates[-1] == rates[-2] == 3e-4 / 8


def test_a_run_that_is_stopped_after_going_back_ends_like_an_unbroken_one(
    start: Start, fail_above: Callable[..., Any], signal_after: Callable[..., None], assert_same_state: Callable[..., None], tmp_path: Path
) -> None:
    fail_above(20, 2e-4)
    unbroken, _ = start(report=REPORT, outdir=tmp_path / "unbroken")
    assert read_tensors(unbroken.state)[1]["rollbacks"] == 1
    signal_after(28)
    folder, stopped_by = start(report=REPORT)
    assert stopped_by == signal.SIGTERM
    assert start(report=REPORT) == (folder, None)
    assert_same_state(folder, unbroken)


def test_it_goes_back_to_before_the_doubt(
    small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: list[str]
) -> None:
    """Pictures alike from 12 to 32 images: the states at 16, 24 and 32 are suspect, the one at 8 is not."""
    monkeypatch.setattr(monitor_module, "SATURATED", 2)  # four pictures at a tick are easily told apart
    drawn: list[int] = []

    def collapsed(session: Session) -> float:
        alike = session.step.rate_scale == 1 and len(drawn) >= 2
        drawn.append(0)
        return 0.01 if alike else 0.9

    monkeypatch.setattr(loop, "diversity", collapsed)
    config = TrainConfig.parse(small_config(report=REPORT, monitor={"patience_kimg": 0.02}))
    folder, _ = run_training(config, tmp_path, resume="never", description="x")
    (line,) = [line for line in said if "rolling back" in line]
    assert "at 32 images the generated images are all alike" in line
    assert "since 12 images: rolling back to 8 images, with learning rates times 0.5 (rollback 1 of 3)" in line
    assert folder.snapshots() == [folder.snapshot(nimg) for nimg in (8, 16, 24, 32, 40)]
    assert read_tensors(folder.state)[1]["suspect_since"] == {}
    assert not folder.last_healthy.exists()


def test_pictures_that_are_all_alike_end_a_run(
    small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: list[str]
) -> None:
    """A G that draws grey whatever it is asked, and a D that does not learn to tell: what is measured of them is real."""
    build = session_module.build_networks

    def grey(*given: Any) -> Any:
        networks = build(*given)
        for G in (networks.G, networks.G_ema):
            for name, parameter in G.named_parameters():
                if "rgb" in name:
                    parameter.data.zero_()
        return networks

    monkeypatch.setattr(session_module, "build_networks", grey)
    values = small_config(kimg=0.2, report=REPORT, optimizer={"warmup_kimg": 0, "g_lr": 1e-9, "d_lr": 1e-9})
    config = TrainConfig.parse(values | {"monitor": {"patience_kimg": 0.02, "rollbacks": 1}})
    with pytest.raises(GanT2IError, match="the generated images are all alike: Quality/diversity is 0") as error:
        run_training(config, tmp_path, resume="never", description="x")
    assert "it rolled back 1 time, to ever lower rates" in str(error.value)
    (line,) = [line for line in said if "rolling back" in line]
    assert "at 24 images the generated images are all alike" in line
