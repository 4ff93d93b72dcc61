import pytest
import torch
import torch.nn.functional as F

from gan_t2i.ops.modulated_conv import ModulatedConv, Style


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def textbook(layer, x, w):
    """Compute StyleGAN2's equations 1 and 3: weights scaled for each item, applied by a grouped convolution."""
    n, inputs, height, width = x.shape
    weight = layer.weight[None] * layer.style(w)[:, None, :, None, None]  # [N, O, I, k, k]
    if layer.demodulate:
        weight = weight / (weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).sqrt()
    size = weight.shape[-1]
    y = F.conv2d(x.reshape(1, n * inputs, height, width), weight.flatten(0, 1), padding=size // 2, groups=n)
    return y.reshape(n, -1, height, width) + layer.bias[:, None, None]


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("size", [1, 3])
def test_it_equals_scaling_the_weights_of_every_item(size, demodulate, second_order):
    torch.manual_seed(0)
    layer = ModulatedConv(6, 5, size, w_width=4, demodulate=demodulate, second_order=second_order)
    torch.nn.init.normal_(layer.bias)
    x, w = draws(3, 6, 7, 7), draws(3, 4, seed=1)
    torch.testing.assert_close(layer(x, w), textbook(layer, x, w), atol=1e-5, rtol=1e-5)


def test_demodulation_gives_unit_variance_whatever_the_style():
    torch.manual_seed(0)
    layer = ModulatedConv(32, 16, 3, w_width=4)
    y = layer(draws(4, 32, 32, 32), 10 * draws(4, 4, seed=1))
    assert 0.9 < y.std() < 1.1


def test_style_starts_near_one_and_follows_w():
    torch.manual_seed(0)
    style = Style(16, 1000, second_order=False)
    assert torch.equal(style(torch.zeros(1, 16)), torch.ones(1, 1000))
    assert 0.8 < (style(draws(1, 16)) - 1).std() < 1.2


def test_second_order_style_is_the_product_of_two_maps_plus_a_third():
    torch.manual_seed(0)
    style, w = Style(4, 3, second_order=True), draws(2, 4)
    m1, m2 = (w @ style.factors.weight.T + style.factors.bias).split(3, dim=1)
    torch.testing.assert_close(style(w), m1 * m2 + style.affine(w))


def test_the_style_of_one_item_leaves_the_others_alone():
    torch.manual_seed(0)
    layer, x, w = ModulatedConv(3, 4, 3, w_width=2), draws(2, 3, 4, 4), draws(2, 2, seed=1)
    other = w.clone()
    other[1] += 1
    before, after = layer(x, w), layer(x, other)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1], atol=1e-2)


@pytest.mark.parametrize("smooth", [True, False])
def test_a_map_of_one_style_is_that_style(smooth):
    torch.manual_seed(0)
    layer, x, w = ModulatedConv(3, 4, 3, w_width=2, smooth=smooth), draws(2, 3, 8, 8), draws(2, 2, seed=1)
    torch.testing.assert_close(layer(x, w[:, :, None, None].expand(-1, -1, 2, 2)), layer(x, w))


def test_smooth_styles_show_no_squares():
    torch.manual_seed(0)
    x, w = torch.ones(1, 3, 16, 16), torch.tensor([0.0, 1.0, 0.0, 1.0]).view(1, 1, 1, 4).expand(1, 2, 4, 4)
    steps = {}
    for smooth in (True, False):
        layer = ModulatedConv(3, 1, 1, w_width=2, demodulate=False, smooth=smooth)
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.ones_(layer.style.affine.weight)
        steps[smooth] = layer(x, w)[0, 0].diff(dim=1).abs().detach()
    assert steps[False].max() == pytest.approx(6)  # the style of 3 channels goes from 1 to 3, between one square and the next
    assert steps[True].max() == pytest.approx(6 / 4)  # ... over 4 pixels


def test_bfloat16_stays_bfloat16_and_near_float32():
    torch.manual_seed(0)
    layer, x, w = ModulatedConv(8, 4, 3, w_width=2), draws(2, 8, 4, 4), draws(2, 2, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.bfloat16(), w)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x, w), atol=0.05, rtol=0.05)
