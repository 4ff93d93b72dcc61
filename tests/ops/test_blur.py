import math

import pytest
import torch

from gan_t2i.ops.blur import blur


def test_no_blur_is_the_picture_itself():
    images = torch.rand(1, 3, 8, 8)
    assert blur(images, 0.0) is images


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_a_point_becomes_a_gaussian_of_that_width_and_keeps_its_sum(sigma):
    image = torch.zeros(1, 3, 33, 33)
    image[0, 1, 16, 16] = 1
    spread = blur(image, sigma)[0]
    assert spread[0].abs().max() == spread[2].abs().max() == 0
    assert spread[1].sum().item() == pytest.approx(1)
    offsets = torch.arange(33) - 16
    for axis in (0, 1):
        variance = (spread[1].sum(dim=1 - axis) * offsets**2).sum().item()
        exact = torch.exp(-0.5 * (offsets / sigma) ** 2)
        assert variance == pytest.approx((exact / exact.sum() * offsets**2).sum().item(), rel=0.05)
    assert spread[1, 16, 16] == spread[1].max()
    assert torch.allclose(spread[1], spread[1].T)


def test_edges_repeat_and_a_wide_blur_fits_into_a_small_picture():
    plain = torch.full((1, 3, 8, 8), 0.25)
    torch.testing.assert_close(blur(plain, 10.0), plain)
    half = torch.cat([torch.ones(1, 3, 8, 4), -torch.ones(1, 3, 8, 4)], dim=3)
    assert blur(half, 10.0).abs().max() < 0.6
    assert blur(half, 1.0)[0, 0, 0].diff().max() <= 0


def test_derivatives_of_both_orders_reach_the_picture():
    image = torch.rand(1, 2, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(blur(image, 1.0).pow(3).sum(), image, create_graph=True)
    (bend,) = torch.autograd.grad(slope.square().sum(), image)
    assert math.isfinite(bend.sum().item())
    assert (bend != 0).all()
