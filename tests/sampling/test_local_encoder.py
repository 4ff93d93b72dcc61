"""A model trained with a text encoder in a local folder: found again, never named in the snapshot, and never mistaken for another."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gan_t2i import Text2Image
from gan_t2i.core.errors import GanT2IError
from gan_t2i.runs import RunFolder
from gan_t2i.text.encoder import build_encoder, interface_for
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.run import run_training

SMALL = {"width": 32, "layers": 1, "heads": 2, "max_tokens": 16}
SHORT = {"kimg": 0.008, "report": {"stats_kimg": 1, "grid_kimg": 1, "snapshot_kimg": 1, "grid_prompts": 1, "grid_seeds": 1}}


def save_encoder(folder: Path, seed: int) -> Path:
    params = {**SMALL, "seed": seed}
    interface = interface_for("tiny", params, ["a red circle", "a blue square"])
    build_encoder("tiny", params, interface).model.save(str(folder))
    return folder


def train(values: dict[str, Any], outdir: Path) -> RunFolder:
    return run_training(TrainConfig.parse(values), outdir, resume="auto", description="local")[0]


def test_a_local_encoder(small_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    encoder = save_encoder(tmp_path / "somebody" / "my-encoder", seed=1)
    spec = {"name": "sentence-transformer", "params": {"model": str(encoder), "max_tokens": 16}}
    run = train(small_config(text_encoder=spec, **SHORT), tmp_path / "runs")
    snapshot = run.snapshots()[-1]
    content = snapshot.read_bytes()
    assert b"my-encoder" in content
    assert b"somebody" not in content
    picture = Text2Image.load(snapshot).generate("a red circle")[0]  # the run's config knows the whole path

    shared = shutil.copy(snapshot, tmp_path / "shared.safetensors")
    with pytest.raises(GanT2IError, match="my-encoder"):
        Text2Image.load(shared)
    assert Text2Image.load(shared, text_encoder=str(encoder)).generate("a red circle")[0] == picture
    other = save_encoder(tmp_path / "other", seed=2)
    with pytest.raises(GanT2IError, match="--text-encoder"):
        Text2Image.load(shared, text_encoder=str(other))


def test_a_run_does_not_go_on_with_another_encoder(small_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    encoder = save_encoder(tmp_path / "encoder", seed=1)
    spec = {"name": "sentence-transformer", "params": {"model": str(encoder), "max_tokens": 16}}
    values = small_config(text_encoder=spec, **SHORT)
    run = train(values, tmp_path / "runs")
    shutil.rmtree(encoder)
    save_encoder(encoder, seed=2)
    longer = TrainConfig.parse({**values, "kimg": 0.016})
    with pytest.raises(GanT2IError, match="the text encoder is not the one that"):
        run_training(longer, tmp_path / "runs", resume=str(run.path), description="local")
