"""Autoencoders of the library diffusers, from a tiny local folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_t2i import registry
from gan_t2i.checkpoint import load_snapshot
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.images import from_uint8
from gan_t2i.models.autoencoders.hub import CONFIG, WEIGHTS, HubAutoencoder
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.pretraining import autoencoder as pretraining
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.run import run_training

diffusers = pytest.importorskip("diffusers")

KL = {"block_out_channels": (8, 8), "latent_channels": 3, "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 2}
TINY = {
    **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8)),
    **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1)),
}
MODELS: dict[str, Callable[[], Any]] = {
    "kl": lambda: diffusers.AutoencoderKL(**KL, up_block_types=("UpDecoderBlock2D",) * 2),
    "tiny": lambda: diffusers.AutoencoderTiny(**TINY),
}


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    MODELS[request.param]().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def build(folder: Path, **interface: int) -> HubAutoencoder:
    network: HubAutoencoder = registry.build("autoencoder", "hub", {"model": str(folder)}, resolution=32, **interface)
    return network


def test_it_encodes_and_decodes_as_diffusers_does(folder: Path) -> None:
    network = build(folder)
    network.load_pretrained()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = network.encode(images)
        theirs = getattr(diffusers, network.architecture["_class_name"]).from_pretrained(folder, use_safetensors=True)
        encoded = theirs.encode(images, return_dict=False)[0]
        expected = encoded if isinstance(encoded, torch.Tensor) else encoded.mode()
        assert torch.equal(latents, expected)
        assert latents.shape == (2, network.latent_channels, 32 // network.factor, 32 // network.factor)
        assert network.factor == 2
        assert torch.equal(network.decode(latents), theirs.decode(expected, return_dict=False)[0])


def test_a_run_draws_in_its_latents_and_the_snapshot_needs_no_other_file(
    folder: Path, small_config: Callable[..., dict[str, Any]], many_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "LEAST_PSNR", 0.0)  # its weights are random
    spec = {"name": "hub", "params": {"model": str(folder)}}
    config = TrainConfig.parse(small_config(autoencoder=spec, kimg=0.008, data={"source": str(many_pictures)}))
    run, _ = run_training(config, tmp_path / "runs", resume="never", description="hub")
    drawn = from_uint8(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    for file in folder.iterdir():
        file.unlink()
    generator, info = load_snapshot(run.snapshots()[-1])
    assert isinstance(generator, LatentGenerator)
    assert generator.autoencoder.rebuild(drawn).shape == (1, 3, 16, 16)
    assert info.autoencoder is not None
    assert info.autoencoder.params["model"] == "model"  # not the whole path


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without transparency"):
        build(folder, channels=4)
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, "latent_channels": 7}))
    with pytest.raises(GanT2IError, match=r"its weights do not fit its config.json"):
        build(folder).load_pretrained()
    (folder / CONFIG).write_text(json.dumps({**values, "_class_name": "UNet2DModel"}))
    with pytest.raises(GanT2IError, match=r"_class_name must be one of AutoencoderKL, AutoencoderTiny, AutoencoderDC"):
        build(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(GanT2IError, match=f"has no {WEIGHTS}"):
        build(folder)
