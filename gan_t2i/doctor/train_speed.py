"""Measure how fast a config trains, where the time goes, and how close it comes to the machine's limit.

Everything runs as in `gan-t2i train`, ticks included, except grids and snapshots, and nothing is kept. Measurements to compare take turns, so
that a machine that slows down slows all of them.
"""

import contextlib
import io
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gan_t2i.core.phases import REST, PhaseTimer
from gan_t2i.core.runtime import peak_memory_gib, synchronize
from gan_t2i.doctor.flops import Call, Ceiling, FlopCounter, ceiling, seconds_alone, seconds_of
from gan_t2i.runs import RunFolder
from gan_t2i.training.loop import write_stats
from gan_t2i.training.report import Report
from gan_t2i.training.session import Session

# The phases of `training/`. G and D are updated together: D's forward pass serves both and counts for D, and G's backward pass leads through
# D. Each network's own text head counts for the network; "text" is the reading of the cache.
SHARES = {
    "data": ("data",),
    "text": ("text",),
    "G step": ("G forward", "captioner", "G backward", "G optimizer"),
    "D step": ("D forward", "D backward", "D backward with penalty", "D optimizer"),
    "penalty": ("penalty",),
    "EMA": ("EMA",),
    "logging": ("logging",),
    REST: (REST,),
}


@dataclass(frozen=True)
class TrainSpeed:
    """Speed, shares and limits of training: medians over the repeats."""

    steps: int
    """Steps per repeat, in whole intervals of the penalty."""
    images_per_second: float
    slowest: float
    fastest: float
    eager_images_per_second: float | None
    """Speed of the same steps one operation at a time, in turns with captured ones; None where none are captured."""
    shares: dict[str, float]
    """Shares of a step's time, as in `SHARES`."""
    gflop_per_image: float
    gflop_per_second: float
    ceilings: dict[str, Ceiling]
    """Limits for a step's calls at the networks' own shapes, by kind and precision."""
    ceiling: Ceiling
    """Limit for all of them: its seconds are the time of a step that does nothing else."""
    peak_memory_gib: float
    share_of_limit: float
    """Speed as a share of the limit, at which the step's arithmetic runs alone, call by call."""


class Loop:
    """Runs the steps of a session with their report, as in training."""

    def __init__(self, session: Session, report: Report) -> None:
        self.session, self.report, self.nimg = session, report, 0

    def run(self, steps: int) -> None:
        """Train for some steps; returns when the device is done."""
        for _ in range(steps):
            metrics = self.session.run_step(self.nimg)
            self.nimg += self.session.config.batch
            self.report.add(metrics, self.session.config.batch)
        synchronize(self.session.device)

    def tick(self) -> None:
        """Write the records of a tick."""
        write_stats(self.session, self.report, self.nimg)


@contextlib.contextmanager
def temporary_loop(session: Session) -> Iterator[Loop]:
    """Yield a loop whose records go to a folder that is removed, without a progress bar."""
    with tempfile.TemporaryDirectory(prefix="gan_t2i_bench_") as name:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar keeps the stream that it finds when it is made
            report = Report(RunFolder(Path(name)), session.config, session.device, 0, math.ceil(session.config.kimg * 1000), 0)
        with report:
            yield Loop(session, report)


def measure_training(session: Session, steps: int, repeats: int) -> TrainSpeed:
    """Train at least `steps` steps, `repeats` times, and return the medians; the networks change as in a run."""
    config, device = session.config, session.device
    interval = config.penalty.interval
    steps = interval * math.ceil(steps / interval)
    step_seconds, eager_seconds, phases, ticks, alone = [], [], [], [], []
    with temporary_loop(session) as loop:
        with session.step.eager(), FlopCounter() as counter:
            loop.run(interval)
        loop.run(interval)  # by now kernels are chosen and memory is allocated
        for _ in range(repeats):
            step_seconds.append(seconds_of(lambda: loop.run(steps), device) / steps)
            with session.step.eager():
                if session.step.captured is not None:
                    eager_seconds.append(seconds_of(lambda: loop.run(steps), device) / steps)
                with PhaseTimer(device) as timer:
                    loop.run(steps)
            phases.append({name: seconds / steps for name, seconds in split_penalty(timer).items()})
            with PhaseTimer(device) as timer:
                loop.tick()
            ticks.append(timer.seconds["logging"])
            alone.append({call: seconds_alone(call) for call in counter.calls})
    tick = statistics.median(ticks) * config.batch / (config.report.stats_kimg * 1000)  # a step's share of it
    rates, eager_rates = ([config.batch / (seconds + tick) for seconds in each] for each in (step_seconds, eager_seconds))
    eager = statistics.median(eager_rates) if eager_rates else None
    rate, gflop = statistics.median(rates), counter.total / (interval * config.batch) / 1e9
    ceilings, whole = ceilings_of(counter.calls, alone, interval)
    speed, spread, peak = rate * gflop, (min(rates), max(rates)), peak_memory_gib(device)
    share = speed / whole.rate
    return TrainSpeed(steps, rate, *spread, eager, shares(phases, tick), gflop, speed, ceilings, whole, peak, share_of_limit=share)


def split_penalty(timer: PhaseTimer) -> dict[str, float]:
    """Return the timer's seconds, with the penalty's part of D's backward pass counted for the penalty.

    Both are one pass through one graph; the penalty's part is the time that it takes longer than a pass without one. Where every step has a
    penalty there is nothing to compare with, and the whole pass counts for D.
    """
    seconds, plain, both = defaultdict(float, timer.seconds), "D backward", "D backward with penalty"
    if timer.calls[plain]:
        more = max(0.0, seconds[both] - timer.calls[both] * seconds[plain] / timer.calls[plain])
        seconds[both] -= more
        seconds["penalty"] += more
    return seconds


def shares(phases: Sequence[Mapping[str, float]], tick: float) -> dict[str, float]:
    """Return the `SHARES` of a step, which add up to 1, from the seconds of each phase in each repeat and a step's share of the tick."""
    medians: defaultdict[str, float] = defaultdict(float)
    for name, parts in SHARES.items():
        medians[name] = statistics.median(sum(repeat.get(part, 0.0) for part in parts) for repeat in phases)
    unknown = set().union(*phases) - {part for parts in SHARES.values() for part in parts}
    assert not unknown, f"phases that no share counts: {unknown}"
    medians["logging"] += tick
    whole = sum(medians.values())
    return {name: seconds / whole for name, seconds in medians.items()}


def ceilings_of(calls: Mapping[Call, int], repeats: Sequence[Mapping[Call, float]], steps: int) -> tuple[dict[str, Ceiling], Ceiling]:
    """Return a step's ceilings, by kind and for all, from the calls of `steps` steps and the seconds of each call in each repeat."""
    seconds = {call: statistics.median(repeat[call] for repeat in repeats) for call in calls}
    counts = {call: count / steps for call, count in calls.items()}
    kinds = sorted({call.kind for call in calls})
    by_kind = {kind: ceiling({call: count for call, count in counts.items() if call.kind == kind}, seconds) for kind in kinds}
    return by_kind, ceiling(counts, seconds)
