"""How fast a config trains, where the time goes, and how near that comes to what the machine can do.

Everything runs as in `gan-t2i train`, the records of a tick among it, but for grids and snapshots, and nothing is kept. What is compared is
measured in turns, so that a machine that slows down meanwhile slows all of it.
"""

import contextlib
import io
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gan_t2i.core.phases import REST, PhaseTimer
from gan_t2i.core.runtime import peak_memory_gib, synchronize
from gan_t2i.doctor.flops import Call, Ceiling, FlopCounter, ceiling, seconds_alone
from gan_t2i.runs import RunFolder
from gan_t2i.training.loop import write_stats
from gan_t2i.training.report import Report
from gan_t2i.training.session import Session

# What `training/` calls its phases. G and D are moved at once: D's forward pass serves both and is counted to D, and G's backward pass leads
# through D. Each network's own text head is counted to the network; "text" is the reading of the cache.
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
    """Medians over the repeats."""

    steps: int
    """Of a repeat: as many as were asked for, in whole intervals of the penalty."""
    images_per_second: float
    slowest: float
    fastest: float
    shares: dict[str, float]
    """Of a step's time, as in `SHARES`."""
    gflop_per_image: float
    gflop_per_second: float
    ceilings: dict[str, Ceiling]
    """A step's calls at the network's own shapes, by kind and precision."""
    ceiling: Ceiling
    """All of them: its seconds are what a step would take if it were nothing else."""
    peak_memory_gib: float

    @property
    def share_of_limit(self) -> float:
        """Of the rate that the step's arithmetic reaches alone, call by call."""
        return self.gflop_per_second / self.ceiling.rate

    def to_json(self) -> dict[str, Any]:
        """With the rates and the share that are otherwise computed."""
        rates = {kind: {**asdict(value), "rate": value.rate} for kind, value in self.ceilings.items()}
        whole = {**asdict(self.ceiling), "rate": self.ceiling.rate}
        return {**asdict(self), "ceilings": rates, "ceiling": whole, "share_of_limit": self.share_of_limit}


class Loop:
    """The steps of a session and their report, as in training."""

    def __init__(self, session: Session, folder: RunFolder, report: Report) -> None:
        self.session, self.folder, self.report = session, folder, report
        self.nimg = 0

    def run(self, steps: int) -> None:
        """Train; returns when the device is done."""
        for _ in range(steps):
            metrics = self.session.run_step(self.nimg)
            self.nimg += self.session.config.batch
            self.report.add(metrics, self.session.config.batch)
        synchronize(self.session.device)

    def tick(self) -> None:
        write_stats(self.session, self.folder, self.report, self.nimg)


@contextlib.contextmanager
def temporary_loop(session: Session) -> Iterator[Loop]:
    """A loop whose records go to a folder that is removed, and whose progress bar is drawn for nobody."""
    with tempfile.TemporaryDirectory(prefix="gan_t2i_bench_") as name:
        folder = RunFolder(Path(name))
        with contextlib.redirect_stderr(io.StringIO()):  # the bar takes the stream that it finds when it is made
            report = Report(folder, session.config, session.device, 0, math.ceil(session.config.kimg * 1000))
        try:
            yield Loop(session, folder, report)
        finally:
            report.close()


def measure_training(session: Session, steps: int, repeats: int) -> TrainSpeed:
    """Train at least `steps` steps, `repeats` times; the networks move as in a run."""
    config, device = session.config, session.device
    interval = config.penalty.interval
    steps = interval * math.ceil(steps / interval)
    step_seconds, phases, ticks, alone = [], [], [], []
    with temporary_loop(session) as loop:
        with FlopCounter() as counter:
            loop.run(interval)
        loop.run(interval)  # kernels are chosen by now, and memory is taken
        peak = peak_memory_gib(device)
        for _ in range(repeats):
            start = time.perf_counter()
            loop.run(steps)
            step_seconds.append((time.perf_counter() - start) / steps)
            with PhaseTimer(device) as timer:
                loop.run(steps)
            phases.append({name: seconds / steps for name, seconds in split_penalty(timer).items()})
            with PhaseTimer(device) as timer:
                loop.tick()
            ticks.append(timer.seconds["logging"])
            alone.append({call: seconds_alone(call) for call in counter.calls})
    tick = statistics.median(ticks) * config.batch / (config.report.stats_kimg * 1000)  # a step's part of it
    rates = [config.batch / (seconds + tick) for seconds in step_seconds]
    rate, gflop = statistics.median(rates), counter.total / (interval * config.batch) / 1e9
    ceilings, whole = ceilings_of(counter.calls, alone, interval)
    return TrainSpeed(
        steps, rate, min(rates), max(rates), shares(phases, tick), gflop, rate * gflop, ceilings, whole, max(peak, peak_memory_gib(device))
    )


def split_penalty(timer: PhaseTimer) -> dict[str, float]:
    """The timer's seconds, with the penalty's part of D's backward pass counted to the penalty.

    Both are one pass through one graph; what it takes longer than one without a penalty is the penalty's. Where every step has one, there is
    nothing to compare with, and its backward pass stays D's.
    """
    seconds, plain, both = defaultdict(float, timer.seconds), "D backward", "D backward with penalty"
    if timer.calls[plain]:
        more = max(0.0, seconds[both] - timer.calls[both] * seconds[plain] / timer.calls[plain])
        seconds[both] -= more
        seconds["penalty"] += more
    return seconds


def shares(phases: Sequence[Mapping[str, float]], tick: float) -> dict[str, float]:
    """`SHARES` of a step, from the seconds of each phase in each repeat and a step's part of the tick; they add up to 1."""
    medians: defaultdict[str, float] = defaultdict(float)
    for name, parts in SHARES.items():
        medians[name] = statistics.median(sum(repeat.get(part, 0.0) for part in parts) for repeat in phases)
    unknown = set().union(*phases) - {part for parts in SHARES.values() for part in parts}
    assert not unknown, f"phases that no share counts: {unknown}"
    medians["logging"] += tick
    whole = sum(medians.values())
    return {name: seconds / whole for name, seconds in medians.items()}


def ceilings_of(calls: Mapping[Call, int], repeats: Sequence[Mapping[Call, float]], steps: int) -> tuple[dict[str, Ceiling], Ceiling]:
    """A step's ceilings by kind and altogether, from the calls of `steps` steps and the seconds of each in each repeat."""
    seconds = {call: statistics.median(repeat[call] for repeat in repeats) / steps for call in calls}
    kinds: defaultdict[str, dict[Call, int]] = defaultdict(dict)
    for call, count in calls.items():
        kinds[call.kind][call] = count

    def of_a_step(counts: Mapping[Call, int]) -> Ceiling:
        found = ceiling(counts, seconds)
        return Ceiling(found.gflop / steps, found.seconds)

    return {kind: of_a_step(counts) for kind, counts in sorted(kinds.items())}, of_a_step(calls)
