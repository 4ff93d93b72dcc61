"""Shared fixtures: a cache folder of their own, one thread, and a small data set with a config that trains on it in seconds."""

import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from processes import same_threads

from gan_t2i.core.log import PACKAGE
from gan_t2i.doctor import recommend
from gan_t2i.doctor.recommend import Recipe
from gan_t2i.runs import RunFolder, pretrained_model
from gan_t2i.text import tiny
from gan_t2i.training import session
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.run import run_training
from gan_t2i.training.session import Session, prepare

COLOURS = ("red", "orange", "green", "blue", "yellow", "purple")  # orange is held out, and not at an end
SHAPES = ("circle", "square")
GRID = range(0, 256, 36)  # eight brightnesses of each colour

# Networks and encoder as small as they get; the tests are about behaviour, not about pictures.
SMALL: dict[str, Any] = {
    "resolution": 16,
    "batch": 4,
    "kimg": 0.04,
    "text_encoder": {"name": "tiny", "params": {"width": 32, "layers": 1, "heads": 2, "max_tokens": 16}},
    "generator": {
        "name": "style",
        "params": {
            "channel_base": 128,
            "channel_max": 16,
            "w_width": 32,
            "z_width": 8,
            "word_resolutions": [8],
            "text_head": {"width": 32, "layers": 1, "heads": 2},
        },
    },
    "discriminator": {
        "name": "resnet",
        "params": {"channel_base": 128, "channel_max": 16, "text_head": {"width": 32, "layers": 1, "heads": 2}},
    },
    "optimizer": {"warmup_kimg": 0},
    "report": {"stats_kimg": 0.008, "grid_kimg": 0.02, "snapshot_kimg": 0.02, "grid_prompts": 4, "grid_seeds": 2},
}


def pytest_configure(config: pytest.Config) -> None:
    """On a machine with a GPU, all tests but those for it see none: they compare bits, and CPU with CPU. Ctrl-C works in the background too."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes its background jobs ignore it


def pytest_collection_finish() -> None:
    """Lets garbage collections pass over what was imported, which took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


COUNTED = pytest.StashKey[dict[str, Counter[str]]]()


@pytest.fixture(scope="session")
def counted(request: pytest.FixtureRequest) -> Callable[[str], Counter[str]]:
    """Gives the counter of that name; what was counted is printed at the end of the tests, whatever is captured."""
    counters = request.config.stash.setdefault(COUNTED, {})
    return lambda name: counters.setdefault(name, Counter())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send what a process of pytest-xdist counted to the one that prints it."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["counted"] = {name: dict(counter) for name, counter in session.config.stash.get(COUNTED, {}).items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what such a process counted."""
    counters = node.config.stash.setdefault(COUNTED, {})
    for name, counts in getattr(node, "workeroutput", {}).get("counted", {}).items():
        counters.setdefault(name, Counter()).update(counts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what the tests counted."""
    for name, counter in config.stash.get(COUNTED, {}).items():
        terminalreporter.write_line(f"{name}: {counter.total():,} ({', '.join(f'{kind} {count:,}' for kind, count in counter.items())})")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves anything in the user's cache; within a session embeddings may be shared."""
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors gain nothing from threads, and two test processes on two cores lose by them. OMP_NUM_THREADS sets another number."""
    same_threads()


@pytest.fixture(autouse=True, scope="session")
def _made_once() -> Iterator[None]:
    """Each tiny encoder is made, and each pair of networks is tried on the meta device, once: together half of the time to prepare a run."""
    bert, check = tiny._random_bert, session.check_networks
    encoders: dict[str, Any] = {}
    checked: set[str] = set()

    def same_bert(config: tiny.TinyEncoder.Config, vocabulary: list[str]) -> Any:
        key = f"{config.model_dump_json()} {vocabulary}"
        if key not in encoders:
            encoders[key] = bert(config, vocabulary)
        return encoders[key]

    def check_once(config: TrainConfig) -> None:
        key = f"{config.autoencoder} {config.generator} {config.discriminator} {config.resolution} {config.data.channels}"
        if key not in checked:
            check(config)
            checked.add(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "_random_bert", same_bert)
        patch.setattr(session, "check_networks", check_once)
        for name in ("fsync", "sync"):  # no test outlives a power cut, and a disk that other programs use takes its time
            patch.setattr(os, name, lambda *arguments: None)
        yield


@pytest.fixture(scope="session")
def modules_of_a_drawing(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules that a process has imported once it has drawn a picture with the packaged model, as with a user's own."""
    place = tmp_path_factory.mktemp("empty")
    shutil.copy(pretrained_model("shapes64"), place / "own.safetensors")
    code = (
        "import sys, gan_t2i; assert 'torch' not in sys.modules\n"
        "assert gan_t2i.generate_image('a red circle', model='own.safetensors').size == (64, 64)\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=place, check=False)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Collects what the package reports."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    PACKAGE.addHandler(handler)
    PACKAGE.setLevel(logging.INFO)
    yield messages
    PACKAGE.removeHandler(handler)
    PACKAGE.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with metadata.jsonl: twelve coloured shapes, two of them held out."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for colour in COLOURS:
        for shape in SHAPES:
            name = f"{colour}-{shape}.png"
            picture = Image.new("RGB", (24, 24), "white")
            draw = ImageDraw.Draw(picture)
            (draw.ellipse if shape == "circle" else draw.rectangle)((5, 5, 18, 18), fill=colour)
            picture.save(folder / name)
            split = "heldout" if colour == "orange" else "train"
            lines.append(json.dumps({"file_name": name, "text": [f"a {colour} {shape}", f"{colour} {shape} on white"], "split": split}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def many_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 256 pictures, each with a name of its own, of twice as many that its words could make; 42 of them held out."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    lines = []
    half = [(r, g, b) for r in GRID for g in GRID for b in GRID if (r + g + b) // 36 % 2]
    for number, (red, green, blue) in enumerate(half):
        pixels = np.full((16, 16, 3), 255, np.uint8)
        x, y = rng.integers(1, 8, 2)
        pixels[y : y + 7, x : x + 7] = (red, green, blue)
        pixels[rng.integers(0, 16, 12), rng.integers(0, 16, 12)] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
        text = f"tone{red} hue{green} shade{blue}"
        lines.append(json.dumps({"file_name": f"{number:03}.png", "text": text, "split": "heldout" if number % 6 == 5 else "train"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def cell_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of thirty things, checks of their own, in red and in blue: two things are held out, and each third thing of ten in one style."""
    folder = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(0)
    lines = []
    for thing in range(30):
        checks = rng.integers(0, 2, (4, 4)).repeat(4, 0).repeat(4, 1)
        for style, other in (("red", 0), ("blue", 1)):
            pixels = np.where(checks[..., None], np.uint8((230, 20, 20) if style == "red" else (20, 20, 230)), np.uint8(255))
            heldout = "thing" if thing < 2 else "cell" if thing % 3 == other and thing >= 15 else ""
            texts = [f"item{thing} in {style}"] if heldout == "cell" else [f"item{thing} in {style}", f"item{thing}"]
            name = f"{style}-{thing}.png"
            Image.fromarray(pixels).save(folder / name)
            columns = {"style": style, "thing": f"t{thing}", "heldout": heldout, "split": "heldout" if heldout else "train"}
            lines.append(json.dumps({"file_name": name, "text": texts, **columns}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small_config(pictures: Path) -> Callable[..., dict[str, Any]]:
    """Makes the small config for `pictures`, with top-level keys replaced."""

    def make(**changes: Any) -> dict[str, Any]:
        return {**SMALL, "data": {"source": str(pictures)}, **changes}

    return make


@pytest.fixture
def small_recipe(small_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Makes the small config, without data and encoder, the one recipe that is recommended; returns its values."""
    recipe = Recipe("small", 64, 100)
    values = {key: value for key, value in small_config(kimg=1).items() if key not in ("data", "text_encoder")}
    recipe.__dict__["values"] = values
    monkeypatch.setattr(recommend, "ON_CPU", (recipe,))
    return values


@pytest.fixture(scope="session")
def trained(small_config: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The finished run of the small config, ten steps, in a folder called runs that holds nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_T2I_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        config = TrainConfig.parse(small_config())
        outdir = tmp_path_factory.mktemp("trained") / "runs"
        folder, stopped_by = run_training(config, outdir, resume="never", description="Small shapes")
    assert stopped_by is None
    return folder


@pytest.fixture
def make_session(small_config: Callable[..., dict[str, Any]]) -> Callable[..., Session]:
    """Prepares a session of the small config, with top-level keys replaced."""

    def make(**changes: Any) -> Session:
        return prepare(TrainConfig.parse(small_config(**changes)))

    return make
