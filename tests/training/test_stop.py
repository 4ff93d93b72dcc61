"""A run that is asked to stop does nothing but end its step and save: what can be drawn or measured later is left for later."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gan_t2i.checkpoint import read_tensors
from gan_t2i.runs import RunFolder
from gan_t2i.training import loop
from gan_t2i.training import periodic_eval as evaluate
from gan_t2i.training.session import Session

Start = Callable[..., tuple[RunFolder, int | None]]
Calls = list[str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The names of the steps, and of what a loop does between them, in their order."""
    made: Calls = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            made.append(name)
            return function(*given, **named)

        return call

    for name in ("diversity", "match_gap", "draw_grid", "save_snapshot", "save_state"):
        monkeypatch.setattr(loop, name, noted(name, getattr(loop, name)))
    monkeypatch.setattr(evaluate, "run_suite", noted("run_suite", evaluate.run_suite))
    monkeypatch.setattr(Session, "run_step", noted("step", Session.run_step))
    return made


@pytest.fixture
def signal_within(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sends this process a signal when a function of a module is called for the n-th time, before it does anything."""

    def plan(module: Any, name: str, number: int = 1) -> None:
        function, left = getattr(module, name), number

        def signal_and_go_on(*given: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return function(*given, **named)

        monkeypatch.setattr(module, name, signal_and_go_on)

    return plan


def grids(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder.path / "grids").iterdir()}


def test_after_the_signal_nothing_is_measured_or_drawn(start: Start, signal_after: Callable[..., None], calls: Calls) -> None:
    signal_after(8)
    folder, stopped_by = start()
    assert stopped_by == signal.SIGTERM
    assert calls == ["draw_grid", "step", "step", "diversity", "match_gap", "step", "save_snapshot", "save_state"]
    assert read_tensors(folder.state)[1]["nimg"] == 12
    # what costs nothing is told all the same
    assert [(record["nimg"], "Text/match_gap" in record) for record in folder.records()] == [(8, True), (12, False)]


def test_what_is_due_when_the_signal_comes_is_drawn_later(
    start: Start, signal_after: Callable[..., None], assert_same_state: Callable[..., None], calls: Calls, tmp_path: Path
) -> None:
    """The step that ends at 20 images is followed by a tick, a grid, a snapshot and an evaluation."""
    unbroken, _ = start(outdir=tmp_path / "unbroken")
    calls.clear()
    signal_after(16)
    folder, stopped_by = start(evaluate={"suite": "shapes", "kimg": 0.02, "limit": 2})
    assert stopped_by == signal.SIGTERM
    assert calls[-5:] == ["step", "diversity", "match_gap", "save_snapshot", "save_state"]
    assert not folder.grid(20).exists()
    assert start(resume="latest") == (folder, None)
    assert_same_state(folder, unbroken)
    assert grids(folder) == grids(unbroken)


def test_a_grid_is_given_up(
    start: Start, signal_within: Callable[..., None], assert_same_state: Callable[..., None], calls: Calls, tmp_path: Path
) -> None:
    unbroken, _ = start(outdir=tmp_path / "unbroken")
    calls.clear()
    signal_within(loop, "draw_grid", 2)
    folder, stopped_by = start()
    assert stopped_by == signal.SIGTERM
    assert calls[-3:] == ["match_gap", "save_snapshot", "save_state"]  # and of the grid not a line
    assert read_tensors(folder.state)[1]["nimg"] == 20
    assert start() == (folder, None)
    assert_same_state(folder, unbroken)
    assert grids(folder) == grids(unbroken)


def test_an_evaluation_is_given_up(start: Start, signal_within: Callable[..., None], calls: Calls) -> None:
    """It follows upon 16 images, which are saved for it."""
    signal_within(evaluate, "draw", 3)
    folder, stopped_by = start(evaluate={"suite": "shapes", "kimg": 0.016, "limit": 2})
    assert stopped_by == signal.SIGTERM
    assert calls[-1] == "save_state"
    assert calls.count("run_suite") == 1
    assert read_tensors(folder.state)[1]["nimg"] == 16
    assert not (folder.path / "evaluation").exists()


def test_a_run_that_has_not_begun_makes_no_step(
    start: Start, signal_within: Callable[..., None], assert_same_state: Callable[..., None], calls: Calls, tmp_path: Path
) -> None:
    unbroken, _ = start(outdir=tmp_path / "unbroken")
    calls.clear()
    signal_within(loop, "draw_grid")
    folder, stopped_by = start()
    assert (stopped_by, calls, folder.state.exists()) == (signal.SIGTERM, [], False)
    assert start() == (folder, None)
    assert_same_state(folder, unbroken)
    assert grids(folder) == grids(unbroken)


def test_a_stop_is_no_tick_for_the_monitor(start: Start, signal_after: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn pictures that are alike at 8 images are suspect since then, and stay so, whether measured at a stop or not."""
    monkeypatch.setattr(loop, "diversity", lambda session: 0.01)
    signal_after(8)
    folder, _ = start()
    metadata = read_tensors(folder.state)[1]
    assert metadata["nimg"] == 12
    assert metadata["suspect_since"]["Quality/diversity"] == 8


def test_numbers_that_are_not_finite_are_not_saved_at_a_stop(
    start: Start, signal_after: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_step = Session.run_step

    def broken(session: Session, nimg: int) -> Any:
        metrics = run_step(session, nimg)
        return {**metrics, "Loss/G/loss": metrics["Loss/G/loss"] * float("nan")} if nimg == 24 else metrics

    monkeypatch.setattr(Session, "run_step", broken)
    signal_after(24)
    folder, stopped_by = start()
    assert stopped_by == signal.SIGTERM
    assert (read_tensors(folder.state)[1]["nimg"], read_tensors(folder.state)[1]["rollbacks"]) == (20, 1)


@pytest.mark.parametrize(("suite", "left_out"), [("none", "the final grid was not drawn"), ("shapes", "run gan-t2i evaluate shapes ")])
def test_at_its_end_it_says_what_is_left_out(
    small_config: Callable[..., Any],
    signal_after: Callable[..., None],
    calls: Calls,
    tmp_path: Path,
    said: list[str],
    suite: str,
    left_out: str,
) -> None:
    from gan_t2i.training.config import TrainConfig
    from gan_t2i.training.run import run_training

    signal_after(36)
    config = TrainConfig.parse(small_config(evaluate={"suite": suite}))
    _, stopped_by = run_training(config, tmp_path, resume="never", description="x")
    assert stopped_by is None
    assert calls[-1] == "save_state"
    assert left_out in said[-1]
