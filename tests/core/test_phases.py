"""Phases are timed each by itself, add up, and cost nothing where nobody asks."""

from types import SimpleNamespace

import pytest
import torch

from gan_t2i.core.phases import PREFIX, REST, PhaseTimer, phase

CPU = torch.device("cpu")


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is read at 0, 1, 3, 6, 10, 15, ... seconds."""
    times = iter([n * (n + 1) / 2 for n in range(100)])
    monkeypatch.setattr("gan_t2i.core.phases.time", SimpleNamespace(perf_counter=times.__next__))


@pytest.mark.usefixtures("_clock")
def test_an_inner_phase_is_not_counted_to_the_outer_one() -> None:
    with PhaseTimer(CPU) as timer, phase("outer"), phase("inner"):
        pass
    # read when the rest begins (0), outer (1), inner (3), and when inner (6), outer (10) and the rest (15) end
    assert timer.seconds == {REST: 1 + 5, "outer": 2 + 4, "inner": 3}
    assert timer.calls == {REST: 1, "outer": 1, "inner": 1}


@pytest.mark.usefixtures("_clock")
def test_a_function_is_a_phase_each_time_that_it_is_called() -> None:
    @phase("work")
    def double(x: int) -> int:
        return 2 * x

    with PhaseTimer(CPU) as timer:
        assert [double(1), double(2)] == [2, 4]
    assert timer.calls["work"] == 2
    assert timer.seconds == {REST: 1 + 3 + 5, "work": 2 + 4}


@pytest.mark.usefixtures("_clock")
def test_a_phase_that_fails_is_ended() -> None:
    with PhaseTimer(CPU) as timer:
        with pytest.raises(ValueError, match="no"), phase("bad"):
            raise ValueError("no")
        with phase("good"):
            pass
    assert timer.seconds == {REST: 1 + 3 + 5, "bad": 2, "good": 4}


def test_after_a_timer_nothing_is_timed() -> None:
    with PhaseTimer(CPU) as timer:
        pass
    with phase("late"):
        pass
    assert "late" not in timer.calls


def test_a_profiler_sees_the_names() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler, phase("seen"):
        torch.ones(2).sum()
    assert PREFIX + "seen" in {event.key for event in profiler.key_averages()}
