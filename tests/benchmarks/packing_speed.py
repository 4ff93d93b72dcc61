"""Packing against Pillow's own decoding on the same cores, and the load of a batch against a training step.

    python tests/benchmarks/packing_speed.py
    python tests/benchmarks/packing_speed.py --pictures 2000 --repeats 1    # a try of a minute

Small PNGs are made in a temporary folder (--size pixels a side). The limit is a loop that opens, decodes, resizes and writes nothing, in as
many threads as packing uses. The two are measured in turns, repeat by repeat, and medians are shown; wanted is a ratio of 0.8 or more.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def pillow_seconds(paths: list[Path], resolution: int) -> float:
    """Open, decode and resize all of them, and no more."""

    def decode(path: Path) -> tuple[int, int]:
        with Image.open(path) as image:
            return image.convert("RGB").resize((resolution, resolution), Image.Resampling.LANCZOS).size

    start = time.perf_counter()
    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(decode, paths):
            pass
    return time.perf_counter() - start


def packing_seconds(source: Path, destination: Path, resolution: int) -> float:
    """The whole of `pack`: reading the metadata, decoding, hashing, splitting, writing, flushing."""
    start = time.perf_counter()
    pack(source, destination, resolution, DataSettings(), progress=False)
    return time.perf_counter() - start


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
        pillow_seconds(paths, resolution)  # the files are in the system's memory from here on, for both
        pillow, ours = [], []
        for repeat in range(options.repeats):
            pillow.append(pillow_seconds(paths, resolution))
            ours.append(packing_seconds(folder / "pictures", folder / f"packed{repeat}", resolution))
        share = load_share(folder / "packed0")
    rates = [options.pictures / statistics.median(seconds) for seconds in (pillow, ours)]
    ratios = [limit / own for limit, own in zip(pillow, ours, strict=True)]
    ratio = statistics.median(ratios)
    print(f"{options.pictures:,} PNGs of {options.size} px to {resolution} px, {cores()} threads, median of {options.repeats}:")
    print(f"  Pillow alone {rates[0]:,.0f} pictures a second, packing {rates[1]:,.0f}")
    print(f"  ratio {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}); wanted: {WANTED_RATIO} or more")
    print(f"loading a batch: {share:.2%} of a step of {QUICKSTART.name}; wanted: less than {WANTED_SHARE:.0%}")
    return 0 if ratio >= WANTED_RATIO and share < WANTED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
