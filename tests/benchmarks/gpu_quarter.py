"""A quarter of an hour of a GPU, well used by one command: its tests, the speeds of four recipes, and training for the minutes that are left.

    python tests/benchmarks/gpu_quarter.py pack IN --data FOLDER --recipe icons64 --wheels WHEELS    # at home
    python tests/benchmarks/gpu_quarter.py run IN OUT --minutes 13                                   # there, in a checkout
    python tests/benchmarks/gpu_quarter.py adopt OUT/*/snapshots/*                                   # at home again

The machine there has torch, sentence-transformers, timm and pytest, and no network. WHEELS holds the rest, pydantic with what it needs:

    pip download --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64 -d WHEELS pydantic

Embeddings of 50,000 captions take 500 MB, the encoder's weights 90. So `pack` takes a copy of the encoder along, in float16 and without the
words that no caption has: 23 MB, and vectors that differ by 0.1%. Prompts in other words mean nothing to it. `adopt` lets a snapshot that was
trained with the copy ask for the encoder itself.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gan_t2i.text.encoder import SentenceEncoder

ROOT = Path(__file__).resolve().parents[2]
COPY = "minilm-float16"  # folder of the encoder's copy, by which a snapshot names it
MOST_MIB = 60  # of what is taken along
RECIPES = ("emoji64", "base64", "shapes64", "base256")  # the largest last, as the time may run out
BENCH = ("--steps", "16", "--repeats", "3")
END = {"wheels": 0.1, "tests": 0.25, "prepare": 0.3, "bench": 0.5, "train": 0.92, "evaluate": 1.0}  # latest, as a share of the minutes
FILLED = 0.8  # of the time to train; the start, and the error of the measured pace, take the rest
GRACE = 15.0  # seconds to save in, when asked to stop


def pack(target: Path, data: str | None, recipe: str, changes: Sequence[str], wheels: Path | None) -> None:
    """Write everything that `run` needs into the new folder `target`; raises `UsageError` where the recipe cannot be trained from it."""
    from gan_t2i.core import recipes
    from gan_t2i.core.config import read_yaml
    from gan_t2i.core.errors import UsageError
    from gan_t2i.core.files import atomic_folder, check_new
    from gan_t2i.data.batches import open_batches
    from gan_t2i.data.builtin import resolve_source
    from gan_t2i.data.builtin.shapes import make_shapes
    from gan_t2i.data.readers import read
    from gan_t2i.doctor.plan import Request
    from gan_t2i.models.features import LITE0
    from gan_t2i.text.encoder import build_encoder
    from gan_t2i.training.config import TrainConfig

    check_new(target)
    request = Request(read_yaml(recipes.path_of(recipe)), tuple(changes), {"data": {"source": data} if data else {}})
    values = request.apply(request.base or {})
    config = TrainConfig.parse(values)
    source = resolve_source(config.data.source, config.resolution, config.data)
    if not isinstance(source, Path) or not source.is_dir():
        raise UsageError(f"only a folder of pictures can be taken along, and {config.data.source} is none")
    carried = sorted(wheels.glob("*.whl")) if wheels else []
    if config.decoder.perceptual and not any(wheel.name.startswith(LITE0.name.replace("-", "_")) for wheel in carried):
        raise UsageError(f"decoder.perceptual needs the wheel of {LITE0.name} in --wheels; or --set decoder.perceptual=0")
    captions = open_batches(config.data, config.resolution, config.terms["mismatch"]["negatives"]).captions
    with atomic_folder(target) as folder:
        (folder / "recipe.json").write_text(json.dumps(values), encoding="utf-8")
        shutil.make_archive(str(folder / "data"), "zip", source)
        few = make_shapes(folder / "few", count=256, progress=False)
        (folder / "wheels").mkdir()
        for wheel in carried:
            shutil.copy(wheel, folder / "wheels")
        if config.text_encoder.name == "sentence-transformer":
            encoder = build_encoder("sentence-transformer", config.text_encoder.params, {})
            shown = [caption for record in read(few).records for caption in record.captions]
            write_copy(encoder, [*captions, *shown], folder / COPY)
            shutil.make_archive(str(folder / COPY), "zip", folder / COPY)
            shutil.rmtree(folder / COPY)
    mib = sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 2**20
    print(f"{target}: {mib:.1f} MiB" + f", more than {MOST_MIB}" * (mib > MOST_MIB))


def write_copy(encoder: "SentenceEncoder", captions: Sequence[str], target: Path) -> None:
    """Write a BERT in float16 into the new folder `target`, with zeros for the words that `captions` do not have."""
    import safetensors.torch

    from gan_t2i.core.errors import UsageError
    from gan_t2i.text.bert import Bert
    from gan_t2i.text.weights import NEEDED_FILES

    if not isinstance(encoder.model, Bert):
        raise UsageError(f"the text encoder {encoder.id} cannot be taken along: all-MiniLM-L6-v2 and its like can")
    home = encoder.model.folder
    for path in {path for pattern in NEEDED_FILES for path in home.glob(pattern)}:
        copy = target / path.relative_to(home)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in encoder.model.weights.items()}
    words = tensors["embeddings.word_embeddings.weight"]
    used = sorted({token for row in encoder.token_ids(captions) for token in row})
    kept = words[used]
    words.zero_()[used] = kept
    safetensors.torch.save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


class Stages:
    """Runs one command after another, each until its share of the time is over; output goes to NAME.log, results to stages.json."""

    def __init__(self, out: Path, minutes: float, environment: dict[str, str]) -> None:
        self.out, self.seconds, self.environment = out, 60 * minutes, environment
        self.begun, self.results = time.monotonic(), list[dict[str, Any]]()

    def left(self, name: str) -> float:
        """Seconds until the stage has to end."""
        return max(0.0, self.begun + END[name] * self.seconds - time.monotonic())

    def start(self, name: str, *command: object) -> "subprocess.Popen[bytes]":
        with (self.out / f"{name}.log").open("wb") as log:
            return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT)

    def finish(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        """Wait for a stage; at its end ask it to stop, and a little later kill it."""
        try:
            process.wait(self.left(name))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # a run saves, and pytest tells what failed
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
        self.results.append({"stage": name, "exit_code": process.wait(), "ended_after": round(time.monotonic() - self.begun, 1)})
        (self.out / "stages.json").write_text(json.dumps(self.results, indent=1), encoding="utf-8")
        print(f"{name}: exit code {process.returncode} after {self.results[-1]['ended_after']:.0f} s in all", flush=True)

    def run(self, name: str, *command: object) -> None:
        self.finish(name, self.start(name, *command))


def run(packed: Path, out: Path, minutes: float) -> None:
    """Use `minutes` of this machine with what `pack` wrote; all is in `out` as soon as it is known, and what fails stops nothing else."""
    packed, out = packed.resolve(), out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    python, command = (sys.executable, "-m"), (sys.executable, "-m", "gan_t2i")
    with tempfile.TemporaryDirectory(prefix="gan_t2i_quarter_") as name:
        inputs = Path(name)
        paths = [str(inputs / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        stages = Stages(out, minutes, {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))})
        if wheels := sorted((packed / "wheels").glob("*.whl")):
            stages.run("wheels", *python, "pip", "install", "--no-index", "--no-deps", "--target", inputs / "site", *wheels)
        for archive in packed.glob("*.zip"):
            shutil.unpack_archive(archive, inputs / archive.stem)
        has_copy = (inputs / COPY).is_dir()
        encoder = ("--set", f"text_encoder.params.model={inputs / COPY}") if has_copy else ()
        train = (*command, "train", "--config", packed / "recipe.json", "--data", inputs / "data", *encoder)
        # packs and encodes the data in processors that the tests leave idle
        ready = stages.start("prepare", *train, "--dry-run")
        stages.run("tests", *python, "pytest", "-vv", "-m", "gpu", *gpu_tests())
        stages.finish("prepare", ready)
        settings = ("--data", packed / "few", *encoder, "--set", "decoder.perceptual=0")
        stages.run("bench", *command, "bench", *RECIPES, *settings, *BENCH, "--json", out / "bench.json")
        length = ("--minutes", max(0.01, FILLED * stages.left("train") / 60), "--set", "report.stats_kimg=4")
        stages.run("train", *train, *length, "--outdir", out, "--desc", "quarter")
        told = ("--text-encoder", inputs / COPY) if has_copy else ()
        for folder in sorted(out.glob("*-quarter"))[-1:]:
            stages.run("evaluate", *command, "evaluate", "pictures", folder, "--features", "random", *told)


def gpu_tests() -> list[Path]:
    """The files with tests for a GPU: others may need packages that the machine does not have."""
    return [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")]


def adopt(snapshots: Sequence[Path]) -> None:
    """Let snapshots that were trained with the encoder's copy ask for the encoder itself; raises `UsageError` for others."""
    from dataclasses import asdict

    from gan_t2i.checkpoint import BuildSpec, EncoderRecord, read_info, read_tensors, write_tensors
    from gan_t2i.core.errors import UsageError
    from gan_t2i.text.encoder import build_encoder

    for path in snapshots:
        recorded = read_info(path).encoder
        if recorded.id != COPY:
            raise UsageError(f"{path} was trained with the text encoder {recorded.id}, not with {COPY}")
        encoder = build_encoder(recorded.built.name, {"max_tokens": recorded.built.params["max_tokens"]}, {})
        built = BuildSpec(recorded.built.kind, recorded.built.name, encoder.params, {})
        tensors, metadata = read_tensors(path)
        record = EncoderRecord(built, encoder.id, encoder.revision, encoder.weights_hash)
        write_tensors(path, tensors, {**metadata, "encoder": asdict(record)})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("pack", help="write what the machine with the GPU needs")
    verb.add_argument("target", type=Path, metavar="IN")
    verb.add_argument("--data", help="folder of captioned pictures, in place of the recipe's")
    verb.add_argument("--recipe", required=True, help="name of a shipped recipe, or a YAML file")
    verb.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY.SUBKEY=VALUE", help="change one setting; repeatable")
    verb.add_argument("--wheels", type=Path, help="folder of wheels that the machine lacks")
    verb = verbs.add_parser("run", help="use the GPU")
    verb.add_argument("packed", type=Path, metavar="IN")
    verb.add_argument("out", type=Path, metavar="OUT")
    verb.add_argument("--minutes", type=float, default=13.0)
    verb = verbs.add_parser("adopt", help="let snapshots ask for the encoder itself")
    verb.add_argument("snapshots", type=Path, nargs="+")
    arguments = vars(parser.parse_args())
    from gan_t2i.core.errors import GanT2IError

    try:
        {"pack": pack, "run": run, "adopt": adopt}[arguments.pop("verb")](**arguments)
    except GanT2IError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
