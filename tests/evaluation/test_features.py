"""The networks that pictures are compared in: fixed, identified by their hash, and refused in time."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.weights import hash_state
from gan_t2i.evaluation import features as feature_spaces
from gan_t2i.evaluation.features import FeatureSpace, RandomFeatures, check_names, open_space, pixels
from gan_t2i.evaluation.matcher import Matcher, MatcherConfig

CPU = torch.device("cpu")


def open_named(name: str) -> FeatureSpace:
    return open_space(name, CPU, lambda: Matcher(MatcherConfig(channels=8, width=32), resolution=16, text_width=8).eval())


@pytest.fixture
def pictures() -> Tensor:
    return torch.randint(0, 256, (70, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_random_features_are_the_same_everywhere(pictures: Tensor) -> None:
    torch.rand(3)  # the global random state says nothing
    space = open_named("random")
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # elsewhere torch.randn has other last bits
        assert space.sha256.startswith("f73d6a961406")
    features = space.embed(pictures)
    assert features.shape == (70, space.width)
    assert torch.equal(features, open_named("random").embed(pictures))
    # a picture's features do not depend on those beside it
    assert torch.allclose(features[3:5], space.embed(pictures[3:5]), atol=1e-4)


@pytest.mark.parametrize("resolution", [16, 32, 64, 128])
def test_random_features_of_any_resolution(resolution: int) -> None:
    flat = torch.full((1, 3, resolution, resolution), 255, dtype=torch.uint8)
    black = torch.zeros_like(flat)
    features = RandomFeatures()(torch.cat([flat, black, flat]))
    assert features.isfinite().all()
    torch.testing.assert_close(features[0], features[2])  # the last row of a batch may have other last bits
    assert not torch.allclose(features[0], features[1])


def test_the_matcher_is_identified_by_its_weights(pictures: Tensor) -> None:
    space = open_named("matcher")
    assert space.width == 32
    assert torch.allclose(space.embed(pictures).norm(dim=1), torch.ones(70), atol=1e-3)
    module = torch.nn.Linear(2, 2)
    before = hash_state(module)
    with torch.no_grad():
        module.weight[0, 0] += 1
    assert hash_state(module) != before


def test_a_distance_in_pixels_is_a_root_mean_square() -> None:
    black, white = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    features = pixels(64).embed(torch.cat([black, white]))
    assert torch.dist(features[0], features[1]).item() == pytest.approx(2, rel=1e-4)


def test_names_are_checked() -> None:
    check_names(("random", "efficientnet-lite2"))
    with pytest.raises(UsageError, match=r"nonsense is not a network .* there are random, matcher, efficientnet-lite2, inception"):
        check_names(("nonsense",))
    with pytest.raises(UsageError, match="twice"):
        check_names(("random", "random"))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_spaces, "LITE2", dataclasses.replace(feature_spaces.LITE2, name="no-such-package"))
    with pytest.raises(GanT2IError, match=r"needs the packages timm and no-such-package: pip install"):
        open_named("efficientnet-lite2")
    monkeypatch.setattr(feature_spaces.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GanT2IError, match="needs the package torch-fidelity: pip install"):
        open_named("inception")


def test_inception_weights_come_from_torch_s_folder_or_say_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[Any, ...]] = []

    def no_network(*arguments: Any, **settings: Any) -> None:
        requests.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(GanT2IError, match=r"not in .*weights-inception-2015-12-05-6726825d.pth, and URL did not give them \(no network\)"):
        feature_spaces._inception_weights("URL")
    assert requests == [("URL", str(tmp_path / "checkpoints" / feature_spaces.INCEPTION_FILE))]
    (tmp_path / "checkpoints" / feature_spaces.INCEPTION_FILE).write_bytes(b"others")
    with pytest.raises(GanT2IError, match=f"has sha256 .*, not {feature_spaces.INCEPTION_SHA256}: delete that copy"):
        feature_spaces._inception_weights("URL")
    assert len(requests) == 1


def test_efficientnet_lite2_tells_real_structure_from_noise(pictures: Tensor) -> None:
    pytest.importorskip("timm")
    if feature_spaces.LITE2.find() is None:
        pytest.skip("the extra metrics is not installed")
    space = open_named("efficientnet-lite2")
    flat = torch.arange(0, 70, dtype=torch.uint8)[:, None, None, None].expand(70, 3, 16, 16).contiguous()
    noise, plain = space.embed(pictures), space.embed(flat)
    assert noise.shape == (70, 1280)
    assert torch.dist(noise.mean(0), plain.mean(0)) > noise.std(0).norm()


def test_inception_is_built_from_checked_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights in the place of the real ones, with their own hash: the file is read, and the features are FID's 2,048."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    made: dict[str, Tensor] = {}

    def remember(*arguments: Any, **settings: Any) -> dict[str, Tensor]:
        return made

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: made.update(self.state_dict()))
    monkeypatch.setattr(extractor, "load_state_dict_from_url", remember)
    extractor.FeatureExtractorInceptionV3("inception", ["2048"])
    monkeypatch.undo()
    path = tmp_path / "checkpoints" / feature_spaces.INCEPTION_FILE
    path.parent.mkdir()
    torch.save(made, path)
    monkeypatch.setattr(feature_spaces, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    space = open_named("inception")
    assert space.standard
    assert space.embed(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 2048)
