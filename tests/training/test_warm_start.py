"""A run begins with another's weights, also where its pictures are larger."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from gan_t2i import registry
from gan_t2i.checkpoint import BuildSpec, EncoderRecord, SnapshotInfo, save_snapshot
from gan_t2i.core.errors import UsageError
from gan_t2i.ops.resample import downsample
from gan_t2i.runs import RunFolder, pretrained_model
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.networks import Networks, build_networks
from gan_t2i.training.session import prepare
from gan_t2i.training.state import Progress, save_state
from gan_t2i.training.warm_start import init_source, warm_start

INTERFACE = {"text_width": 24, "max_tokens": 8}
SMALL = {"channel_base": 512, "channel_max": 16, "text_head": {"width": 16, "layers": 1, "heads": 2}}
GENERATOR = {**SMALL, "w_width": 16, "z_width": 8, "local_styles": True}


def networks(resolution: int, seed: int, discriminator: str = "aligned", channels: int = 16, grown_from: Sequence[int] = ()) -> Networks:
    small = {**SMALL, "channel_max": channels, "grown_from": grown_from}
    values = {
        "seed": seed,
        "resolution": resolution,
        "generator": {"name": "style", "params": {**GENERATOR, "channel_max": channels}},
        "discriminator": {"name": discriminator, "params": small},
    }
    pixels = registry.build("autoencoder", "pixels", {}, resolution=resolution)
    return build_networks(TrainConfig.parse(values), {"resolution": resolution, **INTERFACE}, pixels, torch.device("cpu"))


@pytest.mark.parametrize("discriminator", ["aligned", "resnet"])
def test_larger_pictures_take_over_all_but_the_new_resolution(tmp_path: Path, discriminator: str) -> None:
    small, large = networks(32, 0, discriminator), networks(64, 1, discriminator)
    save_state(tmp_path / "state.safetensors", small, Progress(nimg=4000), {})
    sentence = warm_start(large, tmp_path / "state.safetensors")
    assert "after 4,000 images" in sentence
    for name, parts in (("G", ("blocks.4.",)), ("G_ema", ("blocks.4.",)), ("D", ("trunk.rgb", "trunk.down64."))):
        theirs = getattr(small, name).state_dict()
        for key, tensor in getattr(large, name).state_dict().items():
            if not key.startswith(parts):
                assert torch.equal(tensor, theirs[key]), key
    assert not torch.any(large.G.blocks[4].to_rgb.weight)
    assert torch.any(large.G.blocks[4].conv0.weight)


@pytest.mark.parametrize("discriminator", ["aligned", "resnet"])
def test_growing_begins_with_the_verdicts_on_smaller_pictures(tmp_path: Path, discriminator: str) -> None:
    small = networks(32, 0, discriminator)
    for resolution, grown_from in ((64, [32]), (128, [32, 64])):
        save_state(tmp_path / "state.safetensors", small, Progress(nimg=4000), {})
        large = networks(resolution, 1, discriminator, grown_from=grown_from)
        warm_start(large, tmp_path / "state.safetensors")
        pictures = torch.randn(2, 3, resolution, resolution)
        verdicts = large.D.trunk(pictures)
        assert torch.equal(verdicts, small.D.trunk(downsample(pictures)))
        verdicts.sum().backward()
        weight = large.D.get_submodule(f"trunk.down{resolution}.conv1").weight
        assert torch.any(weight.grad)
        nn.init.normal_(weight)  # as if it had learned something
        small = large


def test_what_a_network_cannot_have_grown_from_is_refused() -> None:
    with pytest.raises(UsageError, match=r"grown_from: \[64\] px, allowed: \[16, 32\]"):
        networks(64, 0, grown_from=[64])


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ({"discriminator": {"name": "aligned", "params": {"grown_from": [64]}}}, r"grown_from: \[64\] px, allowed: \[16, 32\]"),
        ({"generator": {"name": "style", "params": {"word_resolutions": [128]}}}, r"attention at \[128\] px"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused_before_the_data_are_touched(network: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        prepare(TrainConfig.parse({"resolution": 64, "data": {"source": "nowhere"}, **network}))


def test_networks_of_another_kind_are_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "state.safetensors", networks(32, 0, channels=32), Progress(nimg=16), {})
    with pytest.raises(UsageError, match=r"only \d+% of G is in it"):
        warm_start(networks(32, 1), tmp_path / "state.safetensors")


def test_a_snapshot_gives_both_of_g_and_leaves_d_new(tmp_path: Path) -> None:
    small, large = networks(32, 0), networks(64, 1)
    fresh = networks(64, 1)
    params = TrainConfig.parse({"generator": {"name": "style", "params": GENERATOR}}).generator.params
    encoder = EncoderRecord(BuildSpec("text_encoder", "tiny", {}, {}), "tiny", None, "0" * 64)
    built = BuildSpec("generator", "style", params, {"resolution": 32, **INTERFACE, "channels": 3})
    info = SnapshotInfo(generator=built, encoder=encoder, nimg=5000, data_fingerprint="", data_name="shapes")
    save_snapshot(tmp_path / "any name.safetensors", small.G_ema, info, torch.bfloat16)
    assert "none of D" in warm_start(large, tmp_path / "any name.safetensors")
    theirs = {key: tensor.bfloat16().float() for key, tensor in small.G_ema.state_dict().items()}
    for name in ("G", "G_ema"):
        own = getattr(large, name).state_dict()
        assert all(torch.equal(own[key], tensor) for key, tensor in theirs.items())
    assert all(torch.equal(tensor, fresh.D.state_dict()[key]) for key, tensor in large.D.state_dict().items())


def test_what_to_begin_with_is_found(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "00000-a")
    run.snapshot(16).parent.mkdir(parents=True)
    run.snapshot(16).touch()
    assert init_source(str(run.path)) == run.snapshot(16)
    run.state.touch()
    assert init_source(str(run.path)) == run.state
    assert init_source("pretrained:shapes64") == pretrained_model("shapes64")
    with pytest.raises(UsageError, match="no such run or snapshot"):
        init_source(str(tmp_path / "missing"))
