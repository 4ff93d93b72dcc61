"""Packing against Pillow's own decoding on the same cores, and the load of a batch against a training step.

    python tests/benchmarks/packing_speed.py
    python tests/benchmarks/packing_speed.py --pictures 2000 --repeats 1    # a try of a minute

Small PNGs are made in a temporary folder (--size pixels a side). The limit is a loop that opens, decodes, resizes and writes nothing, in as
many threads as packing uses, each with its share of the pictures. The two are measured in turns, repeat by repeat, and medians are shown, of
pictures a second and of pictures a second of CPU time, which other programs on the same cores change less; wanted is a ratio of 0.8 or more.
Then some steps of configs/quickstart.yaml are trained on the pack that was made: wanted is a load of less than 2% of a step. In that, a
step of the config's own encoder is replaced by the tiny one, which changes neither the load nor the networks much.

It is no test, and pytest does not collect it; with the defaults it takes some minutes on two cores.
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

from gan_t2i.benchmark.train_speed import measure_training
from gan_t2i.config import read_yaml
from gan_t2i.data.packing import cores, pack
from gan_t2i.data.settings import DataSettings
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import prepare

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
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


def decode_with_pillow(paths: list[Path], resolution: int) -> None:
    """Open, decode and resize all of them, and no more."""

    def decode(share: list[Path]) -> None:
        for path in share:
            with Image.open(path) as image:
                image.convert("RGB").resize((resolution, resolution), Image.Resampling.LANCZOS)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(decode, [paths[thread :: cores()] for thread in range(cores())]))


def measure(folder: Path, paths: list[Path], resolution: int, repeats: int) -> tuple[list[Seconds], list[Seconds]]:
    """Pillow alone, and the whole of `pack` (reading the metadata, decoding, hashing, splitting, writing, flushing), in turns."""
    decode_with_pillow(paths, resolution)  # the files are in the system's memory from here on, for both
    pillow, ours = [], []
    for repeat in range(repeats):
        pillow.append(seconds_of(lambda: decode_with_pillow(paths, resolution)))
        target = folder / f"packed{repeat}"
        ours.append(seconds_of(lambda target=target: pack(paths[0].parent, target, resolution, DataSettings(), progress=False)))
    return pillow, ours


def load_share(packed: Path) -> float:
    """The share of a training step of the quickstart that loading its batch takes."""
    values = read_yaml(QUICKSTART)
    values |= {"data": {"source": str(packed)}, "text_encoder": {"name": "tiny"}}
    session = prepare(TrainConfig.parse(values), notify=lambda message: None)
    return measure_training(session, STEPS, repeats=3).shares["data"]


def main() -> int:
    """Measure and print; returns 0 where both are as wanted, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=64, help="side of the PNGs in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    resolution = TrainConfig.parse(read_yaml(QUICKSTART)).resolution
    with tempfile.TemporaryDirectory(prefix="gan_t2i_packing_") as name:
        folder = Path(name)
        paths = make_pictures(folder / "pictures", options.pictures, options.size)
        pillow, ours = measure(folder, paths, resolution, options.repeats)
        share = load_share(folder / "packed0")
    print(f"{options.pictures:,} PNGs of {options.size} px to {resolution} px, {cores()} threads, median of {options.repeats}:")
    medians = {}
    for clock in Seconds._fields:
        limits, own = ([getattr(seconds, clock) for seconds in taken] for taken in (pillow, ours))
        ratios = [limit / packing for limit, packing in zip(limits, own, strict=True)]
        medians[clock] = statistics.median(ratios)
        rates = [options.pictures / statistics.median(seconds) for seconds in (limits, own)]
        print(f"  {clock}: Pillow alone {rates[0]:,.0f} pictures a second, packing {rates[1]:,.0f}")
        print(f"    ratio {medians[clock]:.2f} ({min(ratios):.2f} to {max(ratios):.2f}); wanted: {WANTED_RATIO} or more")
    print(f"loading a batch: {share:.2%} of a step of {QUICKSTART.name}; wanted: less than {WANTED_SHARE:.0%}")
    return 0 if min(medians.values()) >= WANTED_RATIO and share < WANTED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
