"""The loss between images and rebuilt ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_t2i.core.errors import GanT2IError
from gan_t2i.pretraining import rebuilding
from gan_t2i.pretraining.rebuilding import RebuildingLoss, pixel_loss, without_overshoot
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import prepare

CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disk(x: float, channels: int = 3) -> Tensor:
    """Draw a dark disk around column `x` on white, [1, channels, 64, 64]."""
    row, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    inside = ((row - 32) ** 2 + (column - x) ** 2).sqrt() < 16
    return torch.where(inside, -0.8, 1.0).expand(1, channels, 64, 64).clone()


def test_the_pixel_loss_by_hand() -> None:
    images, rebuilt = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    # a mean error of 1/4; one of two vertical and one of two horizontal differences is wrong by 1
    assert pixel_loss(rebuilt, images) == pytest.approx(0.25 + 0.5 * (0.5 + 0.5))


def test_overshoot_costs_nothing_where_it_is_clamped_to_the_image() -> None:
    def loss(*rebuilt: float) -> Tensor:
        ours, theirs = (torch.tensor(levels).view(1, 1, 2, 2) for levels in (rebuilt, exact))
        return pixel_loss(without_overshoot(ours, theirs), theirs)

    exact = (-1.0, 1.0, 0.5, -0.5)
    assert loss(*exact) == loss(-1.3, 1.4, 0.5, -0.5) == 0
    for at, off in enumerate((-0.8, 0.8, 1.4, -1.4)):  # too grey, and beyond the ends where the image is not
        assert loss(*exact[:at], off, *exact[at + 1 :]) > 0.04


def test_transparent_pixels_are_compared_over_black_and_over_white() -> None:
    def loss(light: float, alpha: float) -> Tensor:
        error = torch.tensor([light, light, light, alpha]).view(1, 4, 1, 1).expand(1, 4, 2, 2)
        return pixel_loss(error, torch.zeros(1, 4, 2, 2))

    assert loss(0.5, 0.0) == pytest.approx((0.5 + 0.5) / 2)
    assert loss(0.5, 0.5) == pytest.approx((0.5 + 0.0) / 2)
    assert loss(0.5, -0.5) == pytest.approx((0.5 + 1.0) / 2)


def test_features_prefer_a_sharp_edge_that_is_off_to_a_blurred_one() -> None:
    image, shifted = disk(32), disk(33.5)
    blurred = F.avg_pool2d(F.pad(image, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    perceptual = RebuildingLoss(3.0, CPU)
    extra = {name: perceptual(x, image, rng()) - pixel_loss(x, image) for name, x in (("same", image), ("off", shifted), ("blur", blurred))}
    assert extra["same"] == 0
    assert 0 < extra["off"] < extra["blur"] / 1.5
    rebuilt = blurred.requires_grad_()
    perceptual(rebuilt, image, rng()).backward()
    assert rebuilt.grad is not None
    assert (rebuilt.grad - torch.autograd.grad(pixel_loss(rebuilt, image), rebuilt)[0]).abs().max() > 1e-5


def test_large_images_are_compared_in_one_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = RebuildingLoss(1.0, CPU)
    assert loss.features is not None
    seen: list[Tensor] = []
    loss.features.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    images = torch.arange(128.0 * 128).view(1, 1, 128, 128).expand(1, 3, 128, 128) / 128**2
    for seed in (0, 1):
        loss(images + 1, images, rng(seed))
    assert {x.shape for x in seen} == {(1, 3, 64, 64)}
    theirs, ours = seen[:2]
    assert torch.allclose(ours, theirs + 1)  # the same crop
    assert not torch.equal(seen[0], seen[2])


def test_transparent_images_are_compared_over_grey() -> None:
    loss = RebuildingLoss(1.0, CPU)
    assert loss.features is not None
    seen: list[Tensor] = []
    loss.features.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    nothing = torch.full((1, 4, 64, 64), -1.0)
    loss(nothing, nothing, rng())
    assert torch.equal(seen[0], torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    "changes", [{"decoder": {"kimg": 1, "perceptual": 1}}, {"autoencoder": {"name": "conv", "params": {"factor": 2, "perceptual": 1}}}]
)
def test_missing_features_are_missed_before_the_data(
    small_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    def missing() -> None:
        raise GanT2IError("no features: pip install them")

    monkeypatch.setattr(rebuilding.features, "find_weights", missing)
    config = TrainConfig.parse(
        {"autoencoder": {"name": "conv", "params": {"factor": 2}}, **small_config(), **changes, "data": {"source": "nowhere"}}
    )
    with pytest.raises(GanT2IError, match=r"pip install them; or set decoder\.perceptual, decoder\.adversarial and autoencoder\.params\.per"):
        prepare(config)
