"""Training on busy cores: how much of its speed a run keeps beside one busy process, and beside a second run.

    python configs/studies/speed/busy_speed.py
    python configs/studies/speed/busy_speed.py --repeats 3 --cores 0,1

Each figure is the median of a run's ticks of quickstart, in images per second: alone, beside a process that only counts, and beside another run
that was begun at the same time. "before" has threads that spin for milliseconds before they sleep, which is GNU OpenMP's default; "now" has
threads that spin for microseconds, as the command sets it. "chosen" is the number of threads that the command takes by itself. Wanted is at
least 0.45 of the quiet speed of two threads, which is shown beside each figure.

pytest does not collect this script. With the defaults it takes about twelve minutes on two cores that must be quiet otherwise, and before that
the pictures are made once. On another system than Linux all cores are used.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gan_t2i.runs import list_runs

WANTED = 0.45
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # GNU's default, which a user's own setting brings back
COLUMNS: dict[str, dict[str, str]] = {
    "before, 2 threads": {**SPINNING, "OMP_NUM_THREADS": "2"},
    "before, 1 thread": {**SPINNING, "OMP_NUM_THREADS": "1"},
    "now, 2 threads": {"OMP_NUM_THREADS": "2"},
    "now, 1 thread": {"OMP_NUM_THREADS": "1"},
    "now, chosen": {},
}
ROWS = ("quiet", "beside one busy process", "two runs side by side")
SETTINGS = ("report.stats_kimg=0.064", "report.grid_kimg=1000", "report.snapshot_kimg=1000")  # a tick every four steps, a penalty in each
LEFT_OUT = 1  # tick in which kernels are chosen
SLOWEST = 120  # seconds after which the ticks that there are must do


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Keep a core busy within ``with``."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        time.sleep(1)  # the run beside it looks for free cores at once
        try:
            yield
        finally:
            process.kill()


def rates(environment: dict[str, str], runs: int, ticks: int) -> list[float]:
    """Train `runs` at once until each has had that many ticks after the first few; returns the median speed of each."""
    command = [sys.executable, "-m", "gan_t2i", "train", "--preset", "quickstart", "--resume", "never", "--kimg", "1000"]
    command += [part for setting in SETTINGS for part in ("--set", setting)]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    with tempfile.TemporaryDirectory(prefix="gan_t2i_busy_") as name, contextlib.ExitStack() as stack:
        places = [Path(name, str(number)) for number in range(runs)]
        log = stack.enter_context(Path(name, "log").open("w"))
        processes = [
            stack.enter_context(subprocess.Popen([*command, "--outdir", str(place)], stdout=log, stderr=log, env=own | environment))
            for place in places
        ]
        try:
            found = until_measured(places, processes, ticks)
        finally:
            for process in processes:
                process.kill()
        if not all(found):
            raise SystemExit(f"a run ended early, or made no tick:\n{Path(name, 'log').read_text()[-2000:]}")
    return [statistics.median(each) for each in found]


def until_measured(places: list[Path], processes: list[subprocess.Popen[bytes]], ticks: int) -> list[list[float]]:
    """Wait for the ticks of all runs, all of which go on meanwhile; returns the speeds of each."""
    started = None
    while all(process.poll() is None for process in processes):
        time.sleep(0.2)
        records = [run[0].records() if (run := list_runs(place)) else [] for place in places]
        if started is None and all(records):
            started = time.monotonic()
        found = [[record["Timing/img_per_sec"] for record in each[LEFT_OUT:]] for each in records]
        if all(len(each) >= ticks for each in found) or (started and time.monotonic() - started > SLOWEST):
            return found
    return [[]]


def main() -> int:
    """Measure and print; returns 0 where what the command chooses keeps enough of the speed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ticks", type=int, default=8)
    parser.add_argument("--cores", default="0,1", help="the two cores to run on")
    options = parser.parse_args()
    if sys.platform == "linux":
        os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    found: dict[tuple[str, str], list[float]] = {(row, column): [] for row in ROWS for column in COLUMNS}
    for _ in range(options.repeats):  # in turns, so that a machine that slows down slows all of them
        for row, column in found:
            with busy() if row == ROWS[1] else contextlib.nullcontext():
                found[row, column] += rates(COLUMNS[column], 2 if row == ROWS[2] else 1, options.ticks)
            print(f"{row}, {column}: {', '.join(f'{rate:.0f}' for rate in found[row, column])} img/s", file=sys.stderr, flush=True)
    medians = {cell: statistics.median(values) for cell, values in found.items()}
    whole = medians["quiet", "now, 2 threads"]
    print("\n".join(["| img/s | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]))
    for row in ROWS:
        print(f"| {row} | " + " | ".join(f"{medians[row, column]:.0f} ({medians[row, column] / whole:.2f})" for column in COLUMNS) + " |")
    least = min(min(found[row, "now, chosen"]) for row in ROWS) / whole
    print(f"the slowest run of the chosen threads: {least:.2f} of the quiet speed; wanted: {WANTED:g}")
    return 0 if least >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
