"""A run in the latents of an autoencoder: what its files hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_t2i.checkpoint import load_snapshot, read_info
from gan_t2i.core.images import from_uint8
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.pretraining.autoencoder_training import AutoencoderTraining
from gan_t2i.runs import RunFolder
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import prepare

Start = Callable[..., tuple[RunFolder, None]]
PARAMS = {"factor": 2, "latent_channels": 6, "width": 16, "kimg": 0.08, "batch": 8}


@pytest.fixture
def settings(many_pictures: Path) -> dict[str, Any]:
    return {"autoencoder": {"name": "conv", "params": PARAMS}, "kimg": 0.008, "data": {"source": str(many_pictures)}}


def test_a_snapshot_holds_the_decoder_and_draws_pictures(
    start: Start, small_config: Callable[..., dict[str, Any]], settings: dict[str, Any]
) -> None:
    run, _ = start(**settings)
    snapshot = run.snapshots()[-1]
    generator, info = load_snapshot(snapshot)
    assert isinstance(generator, LatentGenerator)
    assert (info.resolution, info.has_alpha, generator.resolution, generator.G.resolution) == (16, False, 16, 8)
    assert read_info(snapshot).autoencoder is not None
    session = prepare(TrainConfig.parse(small_config(**settings)), source=run.state)
    images = session.preview_batch(2).images
    assert torch.equal(generator.autoencoder.rebuild(from_uint8(images)), session.rebuilt(images))


def test_a_run_keeps_its_autoencoder_when_the_cache_is_gone(
    start: Start, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, _ = start(**settings)
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(AutoencoderTraining, "run", lambda self: pytest.fail("trained again"))
    again, _ = start(**{**settings, "kimg": 0.016}, resume=str(run.path))
    assert again == run
