"""Models as ONNX files: they draw what torch draws, for every kind of generator, in any batch, and without torch."""

import importlib.util
import json
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import second_generator  # noqa: F401 (registers one without blocks)
import torch
from PIL import Image
from torch import Tensor

from gan_t2i import GanT2IError, Text2Image, UsageError, registry
from gan_t2i.checkpoint import ModelCard
from gan_t2i.core.images import to_pictures
from gan_t2i.core.marks import GENERATED
from gan_t2i.core.runtime import seeded_rng, seeded_weights
from gan_t2i.models.base import Generator
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.ops.checkpointing import Block
from gan_t2i.runs import RunFolder
from gan_t2i.sampling import onnx_export
from gan_t2i.sampling.draw import latent
from gan_t2i.sampling.explore import mix
from gan_t2i.sampling.onnx_draw import Model, to_pixels
from gan_t2i.sampling.onnx_draw import latent as latent_by_numpy
from gan_t2i.sampling.onnx_export import PACKED_TOLERANCE, TOLERANCE, export_onnx
from gan_t2i.sampling.onnx_pack import pack
from gan_t2i.text.batch import TextBatch

TEN = (
    "a red circle",
    "a blue square",
    "Orange CIRCLE on white",
    "green",
    "a",
    "a yellow circle, a red square and a blue circle on white",
    "purple square on white",
    "a dragon",
    "two green circles left of a square",
    "a red circle above a yellow square",
)
TEXT_HEAD = {"width": 32, "layers": 1, "heads": 2}
pytestmark = pytest.mark.slow  # torch takes seconds to write a graph


@pytest.fixture(scope="session")
def exported(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run's model as ONNX."""
    folder = tmp_path_factory.mktemp("onnx") / "model"
    model = Text2Image.load(trained.path, device="cpu")
    model.info = replace(model.info, card=ModelCard("# Small", example="a 'blue' square"))
    export_onnx(model, folder, name="small")
    return folder


@pytest.fixture
def encoder_once(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny encoder, which all models here have, is taken from `exported`."""
    write = onnx_export._write

    def write_once(module: torch.nn.Module, inputs: Any, outputs: list[str], max_tokens: int, path: Path) -> None:
        if path.name == "encoder.onnx":
            shutil.copy(exported / path.name, path)
        else:
            write(module, inputs, outputs, max_tokens, path)

    monkeypatch.setattr(onnx_export, "_write", write_once)


def images_of(model: Text2Image, prompts: tuple[str, ...], seeds: range, psi: float) -> np.ndarray[Any, Any]:
    """Return the images that torch draws, each alone."""
    pairs = zip(prompts, seeds, strict=True)
    with torch.no_grad():
        return np.concatenate([model.generator(latent(model.generator, seed), model.encoder.encode([prompt]), psi) for prompt, seed in pairs])


def largest_difference(model: Text2Image, folder: Path, psi: float) -> float:
    drawn = Model(folder).draw(TEN, range(10), psi)
    expected = images_of(model, TEN, range(10), psi)
    assert drawn.shape == expected.shape
    assert expected.std() > 0.01
    return float(np.abs(drawn - expected).max())


@pytest.mark.parametrize("psi", [1.0, 0.3])
def test_ten_prompts_are_drawn_as_by_torch(trained: RunFolder, exported: Path, psi: float) -> None:
    assert largest_difference(Text2Image.load(trained.path, device="cpu"), exported, psi) < TOLERANCE


def test_packed_files_are_half_as_large_and_draw_almost_the_same(
    trained: RunFolder, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(module: torch.nn.Module, inputs: Any, outputs: list[str], max_tokens: int, path: Path) -> None:
        shutil.copy(exported / path.name, path)

    monkeypatch.setattr(onnx_export, "_write", write)
    model, folder = Text2Image.load(trained.path, device="cpu"), tmp_path / "model"
    export_onnx(model, folder, packed=True)
    for psi in (1.0, 0.3):
        assert TOLERANCE / 100 < largest_difference(model, folder, psi) < PACKED_TOLERANCE
    for part in ("encoder", "generator"):
        weights = [sum(weight.ByteSize() for weight in onnx.load(place / f"{part}.onnx").graph.initializer) for place in (folder, exported)]
        assert weights[0] < 0.6 * weights[1]
    readmes = [(place / "README.md").read_text() for place in (folder, exported)]
    assert ["equal those of torch to 0.02;" in readmes[0], "equal those of torch to 0.001;" in readmes[1]] == [True, True]
    assert ["16 bits" in readme for readme in readmes] == [True, False]


@pytest.mark.parametrize("prompts", [(TEN[0], TEN[5]), (TEN[5], TEN[0])], ids=["longer", "shorter"])
def test_mixes_are_those_of_sample(trained: RunFolder, exported: Path, prompts: tuple[str, str]) -> None:
    *mixes, last = mix(Text2Image.load(trained.path, device="cpu"), *prompts, seeds=(3, 7), truncation_psi=0.7)
    kept = range(len(mixes), -1, -1)
    images = [Model(exported).draw(prompts, (3, 7), 0.7, number)[1] for number in kept]
    pixels, expected = (np.stack(pictures).astype(int) for pictures in (list(map(to_pixels, images)), [*mixes, last]))
    assert np.abs(pixels - expected).max() <= 1
    assert np.abs(expected[1:] - expected[:-1]).max(axis=(1, 2, 3)).min() > 2


@pytest.mark.usefixtures("encoder_once")
@pytest.mark.parametrize(
    ("name", "params", "most_kept"),
    [
        ("residual", {"channel_base": 128, "channel_max": 16, "w_width": 32, "blocks": 1, "word_blocks": 1}, 2),
        ("transformer", {"width": 32, "heads": 2, "layers": 1, "w_width": 32}, 0),
        ("second", {}, 0),
    ],
)
def test_generators_of_latents(trained: RunFolder, tmp_path: Path, name: str, params: dict[str, Any], most_kept: int) -> None:
    model = Text2Image.load(trained.path, device="cpu")
    sizes = {"text_width": model.encoder.width, "max_tokens": model.encoder.max_tokens}
    with seeded_weights(0):
        autoencoder = registry.build("autoencoder", "conv", {"width": 8, "factor": 2}, resolution=32, channels=4)
        settings = {**params, "text_head": TEXT_HEAD}
        G = registry.build("generator", name, settings, resolution=16, channels=autoencoder.latent_channels, **sizes)
    model.generator = LatentGenerator(G, autoencoder).eval()
    export_onnx(model, tmp_path / "model")
    assert largest_difference(model, tmp_path / "model", 0.7) < TOLERANCE
    assert json.loads((tmp_path / "model" / "model.json").read_text())["most_kept"] == most_kept


def test_the_program_draws_the_picture_of_sample_without_torch(trained: RunFolder, exported: Path, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    no_torch = "assert not {'torch', 'gan_t2i'} & {*sys.modules}"
    code = f"import runpy, sys; runpy.run_path({str(exported / 'draw.py')!r}, run_name='__main__'); {no_torch}"
    command = [sys.executable, "-c", code, "a red circle", "--seed", "3", "--truncation", "0.5", "--out", str(file)]
    assert subprocess.run(command, check=True, cwd=tmp_path, stdout=subprocess.PIPE, text=True).stdout == f"{file}\n"
    [expected] = Text2Image.load(trained.path, device="cpu").generate("a red circle", seeds=3, truncation_psi=0.5)
    with Image.open(file) as picture:
        assert (picture.mode, picture.size) == ("RGB", (16, 16))
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(expected).astype(int)).max() <= 1
        assert GENERATED in picture.info["XML:com.adobe.xmp"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([" "], "the prompt is empty: say what to draw"),
        (["red", "--seed", "-1"], "--seed must be from 0 to 10^18 - 1"),
        (["red", "--truncation", "9"], "--truncation must be from 0 to 2"),
        (["red", "--out", "x.jpg"], "--out x.jpg must end in .png: it is a PNG file"),
        (["red", "--out", "/nodir/x.png"], "cannot write /nodir/x.png: No such file or directory"),
    ],
    ids=str,
)
def test_the_program_refuses_in_a_sentence(
    exported: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["draw.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(exported / "draw.py"), run_name="__main__")
    assert capsys.readouterr().err.splitlines()[-1] == f"draw.py: error: {message}"


def test_the_folder_explains_itself(trained: RunFolder, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "README.md",
        "draw.py",
        "encoder.onnx",
        "generator.onnx",
        "model.json",
        "tokenizer.json",
    }
    description = json.loads((exported / "model.json").read_text())
    assert (description["z_width"], description["resolution"], description["channels"], description["max_tokens"]) == (8, 16, 3, 16)
    assert (description["format"], description["most_kept"]) == (2, 2)
    assert {*description["files"].values()} < {path.name for path in exported.iterdir()}
    assert description["name"] == "small"
    readme = (exported / "README.md").read_text()
    assert f"python draw.py {shlex.quote(description['example'])} --seed 3" in readme
    assert "`image` float32 [N, 3, 16, 16]" in readme
    assert "From 1 to `most_kept`, here 2," in readme
    assert Text2Image.load(trained.path).info.data_fingerprint in readme
    for file in ("encoder.onnx", "generator.onnx"):
        assert str(Path(torch.__file__).parent).encode() not in (exported / file).read_bytes()  # no stack traces


@pytest.mark.parametrize("width", [1, 2, 7, 8, 15, 16, 17, 31, 32, 64, 100])
def test_numpy_draws_the_z_of_torch(width: int) -> None:
    for seed in (0, 3, 2**40):
        expected = torch.randn(1, width, generator=seeded_rng(seed, "z"))[0].numpy()
        np.testing.assert_allclose(latent_by_numpy(seed, width), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_are_those_of_our_pictures(channels: int) -> None:
    image = 1.2 * torch.rand(1, channels, 8, 8, generator=seeded_rng(0)) * 2 - 1.2
    np.testing.assert_array_equal(to_pixels(image[0].numpy()), np.asarray(to_pictures(image)[0]))


def test_a_missing_package_and_a_full_folder(trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Text2Image.load(trained.path, device="cpu")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="exists and is not empty"):
        export_onnx(model, tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(GanT2IError, match=r'needs the package onnxscript: pip install "gan-t2i\[export\]"'):
        export_onnx(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


class Branching(Generator):
    """A generator that no graph can hold: what it does depends on the numbers in z."""

    z_width = 8

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        return (z if z.sum() > 0 else -z)[:, :3, None, None] * self.gain


class Deaf(Branching):
    """A generator whose graph would be wrong: it takes truncation for a constant."""

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        psi = 0.5 if torch.compiler.is_exporting() else truncation_psi
        return (z * psi)[:, :3, None, None] * self.gain


class Same(Block):
    """A block that changes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Hidden(Branching):
    """A generator whose graph would be wrong: it runs its blocks past the hooks that mix."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Same(), Same()])

    def forward(self, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Tensor:
        x = z[:, :3, None, None] * self.gain
        for block in self.blocks:
            x = block.forward(x) if torch.compiler.is_exporting() else block(x)
        return x


@pytest.mark.usefixtures("encoder_once")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Branching, "in generator: "), (Deaf, "images differ by .* from torch's"), (Hidden, "images differ by .* from torch's")],
)
def test_a_model_that_cannot_be_written(kind: type[Generator], reason: str, trained: RunFolder, tmp_path: Path) -> None:
    model = Text2Image.load(trained.path, device="cpu")
    model.generator = kind().eval()
    with pytest.raises(GanT2IError, match=f"the model cannot be written as ONNX.*{reason}") as caught:
        export_onnx(model, tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert [*tmp_path.iterdir()] == []


def test_the_packaged_model(tmp_path: Path) -> None:
    model = Text2Image.load("pretrained:shapes64", device="cpu")
    export_onnx(model, tmp_path / "model")
    assert largest_difference(model, tmp_path / "model", 1.0) < TOLERANCE
    for part in ("encoder", "generator"):
        pack(tmp_path / "model" / f"{part}.onnx")
    pictures = np.stack([np.asarray(model.generate(prompt, seeds=seed)[0], int) for seed, prompt in enumerate(TEN)])
    pixels = np.stack([to_pixels(image) for image in Model(tmp_path / "model").draw(TEN, range(10))]).astype(int)
    assert np.abs(pixels - pictures).max() <= 1
