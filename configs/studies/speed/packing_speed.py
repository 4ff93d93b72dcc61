"""Packing against Pillow's own decoding on the same cores, and the load of a batch against a training step.

    python configs/studies/speed/packing_speed.py
    python configs/studies/speed/packing_speed.py --pictures 2000 --repeats 1    # a minute

Small PNGs are made in a temporary folder (--size pixels a side). The limit is a loop that opens, decodes, resizes and writes nothing, over a
pool of as many threads as packing uses: `pool.map` of one picture each. Beside it stands a loop that hands nothing from thread to thread,
where each has its share of the pictures, which nobody can use the pictures of. All are measured in turns, repeat by repeat, and medians are
shown, of pictures a second and of pictures a second of CPU time, which other programs on the same cores change less; wanted is a ratio of 0.8
or more to the first.
Then some steps of the default config are trained on the pack that was made: wanted is a load of less than 2% of a step. In that, a
step of the config's own encoder is replaced by the tiny one, which changes neither the load nor the networks much.

pytest does not collect this script; with the defaults it takes some minutes on two cores.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from gan_t2i.data.packing import cores, pack
from gan_t2i.data.settings import DataSettings
from gan_t2i.doctor.train_speed import measure_training
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import prepare

WANTED_RATIO = 0.8
WANTED_SHARE = 0.02
STEPS = 16
CAPTIONS = 100  # different ones: encoding them is not what is measured


def make_pictures(folder: Path, count: int, size: int) -> list[Path]:
    """Smooth pictures, which compress as photographs do, with a caption each."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = [folder / f"{number:06d}.png" for number in range(count)]
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for number, path in enumerate(paths):
            noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            noise.resize((size, size), Image.Resampling.BICUBIC).save(path)
            file.write(json.dumps({"file_name": path.name, "text": f"smooth noise number {number % CAPTIONS}"}) + "\n")
    return paths


class Seconds(NamedTuple):
    """What something took."""

    wall: float
    cpu: float  # of all threads together


def seconds_of(work: Callable[[], object]) -> Seconds:
    """By the clock, and of this process's CPU time."""
    start = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - start[0], time.process_time() - start[1])


def decode(path: Path, resolution: int) -> None:
    """Open, decode and resize a picture, and no more."""
    with Image.open(path) as image:
        image.convert("RGB").resize((resolution, resolution), Image.Resampling.LANCZOS)


def loop_over_pictures(paths: list[Path], resolution: int) -> None:
    """A pool that is given picture by picture."""
    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(lambda path: decode(path, resolution), paths):
            pass


def loop_over_shares(paths: list[Path], resolution: int) -> None:
    """Threads that know their pictures from the start."""

    def decode_share(share: list[Path]) -> None:
        for path in share:
            decode(path, resolution)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(decode_share, [paths[thread :: cores()] for thread in range(cores())]))


LIMITS = {"Pillow, picture by picture": loop_over_pictures, "Pillow, shares": loop_over_shares}


def measure(folder: Path, paths: list[Path], resolution: int, repeats: int) -> tuple[dict[str, list[Seconds]], list[Seconds]]:
    """The limits, and the whole of `pack` (reading the metadata, decoding, hashing, splitting, writing, flushing), in turns."""
    loop_over_shares(paths, resolution)  # the files are in the system's memory from here on, for all
    limits: dict[str, list[Seconds]] = {name: [] for name in LIMITS}
    ours = []
    for repeat in range(repeats):
        for name, loop in LIMITS.items():
            limits[name].append(seconds_of(lambda loop=loop: loop(paths, resolution)))
        target = folder / f"packed{repeat}"
        ours.append(seconds_of(lambda target=target: pack(paths[0].parent, target, resolution, DataSettings(), progress=False)))
    return limits, ours


def load_share(packed: Path) -> float:
    """The share of a training step of the default config that loading its batch takes."""
    values = {"data": {"source": str(packed)}, "text_encoder": {"name": "tiny"}}
    session = prepare(TrainConfig.parse(values))
    return measure_training(session, STEPS, repeats=3).shares["data"]


def main() -> int:
    """Measure and print; returns 0 where both are as wanted, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=64, help="side of the PNGs in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    resolution = TrainConfig().resolution
    with tempfile.TemporaryDirectory(prefix="gan_t2i_packing_") as name:
        folder = Path(name)
        paths = make_pictures(folder / "pictures", options.pictures, options.size)
        limits, ours = measure(folder, paths, resolution, options.repeats)
        share = load_share(folder / "packed0")
    print(f"{options.pictures:,} PNGs of {options.size} px to {resolution} px, {cores()} threads, median of {options.repeats}:")
    enough = True
    for clock in Seconds._fields:
        own = [getattr(seconds, clock) for seconds in ours]
        print(f"  {clock}: packing {options.pictures / statistics.median(own):,.0f} pictures a second")
        for name, taken in limits.items():
            limit = [getattr(seconds, clock) for seconds in taken]
            ratios = [theirs / packing for theirs, packing in zip(limit, own, strict=True)]
            rate, ratio = options.pictures / statistics.median(limit), statistics.median(ratios)
            enough &= ratio >= WANTED_RATIO or name != next(iter(LIMITS))
            print(f"    {name}: {rate:,.0f}; ratio {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"  wanted: {WANTED_RATIO} or more of {next(iter(LIMITS))}")
    print(f"loading a batch: {share:.2%} of a step of the default config; wanted: less than {WANTED_SHARE:.0%}")
    return 0 if enough and share < WANTED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
