import pytest
import torch
import torch.nn.functional as F

from gan_t2i.ops.resample import downsample, upsample, upsample_to

BOTH = pytest.mark.parametrize("resample", [upsample, downsample])


def draws(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@BOTH
@pytest.mark.parametrize("value", [1.0, -0.375])
def test_a_constant_image_stays_constant_up_to_its_edges(resample, value):
    assert (resample(torch.full((2, 3, 8, 6), value)) == value).all()


def test_sizes():
    assert upsample(torch.zeros(2, 5, 4, 6)).shape == (2, 5, 8, 12)
    assert downsample(torch.zeros(2, 5, 4, 6)).shape == (2, 5, 2, 3)
    assert upsample(torch.zeros(1, 1, 1, 1)).shape == (1, 1, 2, 2)


def test_the_impulse_response_of_upsampling_is_the_filter_around_twice_the_position():
    impulse = torch.zeros(1, 2, 5, 5)
    impulse[0, 1, 2, 3] = 1
    taps = torch.tensor([1.0, 2.0, 1.0])
    wanted = torch.zeros(1, 2, 10, 10)
    wanted[0, 1, 3:6, 5:8] = torch.outer(taps, taps) / 4
    assert torch.equal(upsample(impulse), wanted)


def test_a_pixel_of_downsampling_is_the_filter_around_twice_its_position():
    x = torch.zeros(1, 2, 8, 8, requires_grad=True)
    (weights,) = torch.autograd.grad(downsample(x)[0, 1, 1, 2], x)
    taps = torch.tensor([1.0, 2.0, 1.0])
    wanted = torch.zeros(1, 2, 8, 8)
    wanted[0, 1, 1:4, 3:6] = torch.outer(taps, taps) / 16
    assert torch.equal(weights, wanted)


def test_upsampling_keeps_the_pixels_and_puts_means_between_them():
    x = draws(1, 1, 3, 3)
    y = upsample(x)
    torch.testing.assert_close(y[..., ::2, ::2], x)
    torch.testing.assert_close(y[..., 0, 1], (x[..., 0, 0] + x[..., 0, 1]) / 2)
    torch.testing.assert_close(y[..., 3, 3], x[..., 1:, 1:].mean(dim=(2, 3)))


@BOTH
def test_channels_and_items_do_not_mix(resample):
    x = draws(2, 3, 4, 4)
    for item in range(2):
        for channel in range(3):
            torch.testing.assert_close(resample(x[item : item + 1, channel : channel + 1])[0, 0], resample(x)[item, channel])


@BOTH
def test_first_and_second_derivatives(resample):
    # The filter is linear and works in float32: a wide step loses nothing.
    x = draws(1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(resample, (x,), eps=0.5, atol=1e-5)
    assert torch.autograd.gradgradcheck(resample, (x,), eps=0.5, atol=1e-5)


@BOTH
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_comes_back_as_bfloat16_rounded_once(resample, layout):
    x = draws(2, 3, 8, 8).to(torch.bfloat16).contiguous(memory_format=layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = resample(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, resample(x.float()).to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_downsampling_and_its_derivatives_are_those_of_a_plain_convolution(dtype):
    """Values bit for bit; gradients to float32 rounding, or to one rounding of bfloat16."""

    def plain(x):
        taps = torch.tensor([1.0, 2.0, 1.0])
        kernel = (torch.outer(taps, taps) / 16).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x.float(), (1, 0, 1, 0), mode="replicate"), kernel, stride=2, groups=x.shape[1]).to(dtype)

    x = draws(2, 5, 8, 6, seed=1).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = draws(2, 5, 4, 3, seed=2).to(dtype).requires_grad_()
    found = []
    for function in (downsample, plain):
        y = function(x)
        (first,) = torch.autograd.grad(y, x, upstream, create_graph=True)
        (second,) = torch.autograd.grad(first.float().square().sum(), upstream)
        found.append((y, first, second))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].dtype == found[0][2].dtype == dtype
    torch.testing.assert_close(found[0][1:], found[1][1:])


def test_upsample_to_is_nearest_or_linear():
    x = draws(2, 3, 4, 4)
    torch.testing.assert_close(upsample_to(x, 16, smooth=False), x.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3))
    torch.testing.assert_close(upsample_to(x, 16, smooth=True), upsample(upsample(x)))
    assert all(torch.equal(upsample_to(x, 4, smooth=smooth), x) for smooth in (True, False))
