"""A run begins with another's weights, also where its pictures are larger."""

from pathlib import Path

import pytest
import torch

from gan_t2i.errors import UsageError
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.inherit import begin_with
from gan_t2i.training.state import Progress, save_state
from gan_t2i.training.step import Networks, build_networks

INTERFACE = {"text_width": 24, "max_tokens": 8}


def networks(resolution: int, seed: int, discriminator: str = "aligned", channels: int = 16) -> Networks:
    head = {"width": 16, "layers": 1, "heads": 2}
    small = {"channel_base": 512, "channel_max": channels, "text_head": head}
    values = {
        "seed": seed,
        "resolution": resolution,
        "generator": {"name": "style", "params": {**small, "w_width": 16, "z_width": 8, "local_styles": True}},
        "discriminator": {"name": discriminator, "params": small},
    }
    return build_networks(TrainConfig.parse(values), {"resolution": resolution, **INTERFACE}, torch.device("cpu"))


@pytest.mark.parametrize("discriminator", ["aligned", "resnet"])
def test_larger_pictures_take_over_all_but_the_new_resolution(tmp_path: Path, discriminator: str) -> None:
    small, large = networks(32, 0, discriminator), networks(64, 1, discriminator)
    save_state(tmp_path / "state.safetensors", small, Progress(nimg=4000), {})
    sentence = begin_with(large, tmp_path / "state.safetensors")
    assert "after 4,000 images" in sentence
    for name, parts in (("G", ("blocks.4.",)), ("G_ema", ("blocks.4.",)), ("D", ("trunk.rgb", "trunk.down64."))):
        theirs = getattr(small, name).state_dict()
        for key, tensor in getattr(large, name).state_dict().items():
            if not key.startswith(parts):
                assert torch.equal(tensor, theirs[key]), key
    assert not torch.any(large.G.blocks[4].to_rgb.weight)
    assert torch.any(large.G.blocks[4].conv0.weight)


def test_networks_of_another_kind_are_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "state.safetensors", networks(32, 0, channels=32), Progress(nimg=16), {})
    with pytest.raises(UsageError, match=r"only \d+% of G is in that run"):
        begin_with(networks(32, 1), tmp_path / "state.safetensors")
