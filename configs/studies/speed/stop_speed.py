"""From SIGTERM to the end of a training: cluster managers and shutdowns give a few seconds before they kill.

    python configs/studies/speed/stop_speed.py
    python configs/studies/speed/stop_speed.py configs/shapes64.yaml --stops 10

Each config's run is begun once, and then stopped and gone on with, again and again by the same command. Each signal comes at another moment
between two ticks. Shown are the seconds from the signal to the state on disk, and to the exit; wanted are less than five, whatever else the
machine does. What the slowest single step takes on the machine is the floor, as a step that has begun is ended.

pytest does not collect this script; with the defaults it takes some minutes, and before that the captions are encoded once.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from gan_t2i.runs import RunFolder, list_runs

CONFIGS = [Path(__file__).parents[2] / name for name in ("shapes32.yaml", "shapes64.yaml")]
WANTED = 5.0  # seconds
STATS_KIMG = 0.064  # a tick every four steps: the sign that training goes on
LONGEST_WAIT = 0.5  # seconds between a tick and the signal


def stop_once(config: Path, place: Path, rng: Random) -> tuple[float, float]:
    """Begin the run in `place`, or go on with it, until its next tick, and stop it a moment later: seconds to the state, and to the exit."""
    command = [sys.executable, "-m", "gan_t2i", "train", "--config", str(config), "--outdir", str(place)]
    command += ["--set", f"report.stats_kimg={STATS_KIMG}", "--set", "report.snapshot_kimg=1000", "--set", "report.grid_kimg=1000"]
    before = sum(run.stats.stat().st_size for run in list_runs(place) if run.stats.exists())
    with (place / "log").open("a") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while process.poll() is None and sum(run.stats.stat().st_size for run in list_runs(place) if run.stats.exists()) <= before:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, LONGEST_WAIT))
        wall, start = time.time(), time.perf_counter()
        process.send_signal(signal.SIGTERM)
        code = process.wait()
        seconds = time.perf_counter() - start
    if code != 128 + signal.SIGTERM:
        raise SystemExit(f"the run ended with {code}:\n{(place / 'log').read_text()[-2000:]}")
    state: RunFolder = list_runs(place)[-1]
    return os.stat(state.state).st_mtime - wall, seconds


def main() -> int:
    """Measure and print; returns 0 where every stop was quick enough, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, default=CONFIGS)
    parser.add_argument("--stops", type=int, default=5)
    options = parser.parse_args()
    slowest, rng = 0.0, Random(0)
    for config in options.configs:
        with tempfile.TemporaryDirectory(prefix="gan_t2i_stop_") as place:
            found = [stop_once(config, Path(place), rng) for _ in range(options.stops)]
        exits = [seconds for _, seconds in found]
        slowest = max(slowest, *exits)
        print(f"{config.name}: state saved after {', '.join(f'{seconds:.2f}' for seconds, _ in found)} s")
        print(f"  exit after {', '.join(f'{seconds:.2f}' for seconds in exits)} s; median {statistics.median(exits):.2f}")
    print(f"slowest {slowest:.2f} s; wanted: less than {WANTED:g}")
    return 0 if slowest < WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
