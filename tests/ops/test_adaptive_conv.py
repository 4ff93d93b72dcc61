import pytest
import torch
import torch.nn.functional as F

from gan_t2i.ops.adaptive_conv import AdaptiveConv


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(inputs, outputs, size=3, kernels=4, w_width=4):
    torch.manual_seed(0)
    layer = AdaptiveConv(inputs, outputs, size, w_width=w_width, kernels=kernels)
    torch.nn.init.normal_(layer.bias)
    torch.nn.init.normal_(layer.choice.bias)
    return layer


def mixes(layer, w):
    return torch.softmax(w @ layer.choice.weight.T + layer.choice.bias, dim=1)


def textbook(layer, x, w):
    """GigaGAN's equations, item by item: the item's own mixed, modulated and demodulated kernel."""
    bank = layer.weight.unflatten(1, (layer.kernels, -1)).transpose(0, 1)  # [B, O, I, k, k]
    results = []
    for item, mix, scale in zip(x, mixes(layer, w), layer.style(w), strict=True):
        kernel = sum(share * each for share, each in zip(mix, bank, strict=True)) * scale[:, None, None]
        kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        results.append(F.conv2d(item[None], kernel, layer.bias, padding=kernel.shape[-1] // 2)[0])
    return torch.stack(results)


@pytest.mark.parametrize("kernels", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 3])
def test_it_equals_every_items_own_kernel(size, kernels):
    layer = make(6, 5, size, kernels)
    x, w = draws(3, 6, 7, 7), draws(3, 4, seed=1)
    torch.testing.assert_close(layer(x, w), textbook(layer, x, w), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_every_items_own_kernel():
    layer = make(3, 2)
    found = []
    for compute in (layer, lambda x, w: textbook(layer, x, w)):
        x, w = draws(3, 3, 5, 5).requires_grad_(), draws(3, 4, seed=1).requires_grad_()
        found.append(torch.autograd.grad(compute(x, w).pow(3).sum(), [x, w, *layer.parameters()]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_the_style_chooses_among_the_kernels():
    """With all weight on one kernel of the bank, only that one is used."""
    layer, x, w = make(3, 4), draws(1, 3, 6, 6), draws(1, 4, seed=1)
    outcomes = []
    for chosen in range(layer.kernels):
        layer.choice.bias.data = torch.where(torch.arange(layer.kernels) == chosen, 100.0, 0.0)
        kernel = layer.weight[:, 3 * chosen : 3 * chosen + 3] * layer.style(w)[0][:, None, None]
        expected = F.conv2d(x, kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt(), layer.bias, padding=1)
        outcomes.append(layer(x, w))
        torch.testing.assert_close(outcomes[-1], expected, atol=1e-5, rtol=1e-5)
    assert all((one - other).abs().mean() > 0.1 for i, one in enumerate(outcomes) for other in outcomes[:i])


def test_demodulation_gives_unit_variance_whatever_the_style():
    torch.manual_seed(0)
    layer = AdaptiveConv(32, 16, 3, w_width=4, kernels=4)
    y = layer(draws(4, 32, 32, 32), 10 * draws(4, 4, seed=1))
    assert 0.9 < y.std() < 1.1


def test_kernels_that_cancel_give_numbers():
    layer, x, w = make(64, 8, kernels=2), draws(8, 64, 4, 4), draws(8, 4, seed=1)
    torch.nn.init.zeros_(layer.choice.weight)
    torch.nn.init.zeros_(layer.choice.bias)
    with torch.no_grad():
        layer.weight[:, 64:] = -layer.weight[:, :64] * (1 + 1e-6)
    assert layer(x, w).isfinite().all()


def test_the_style_of_one_item_leaves_the_others_alone():
    layer, x, w = make(3, 4), draws(2, 3, 4, 4), draws(2, 4, seed=1)
    other = w.clone()
    other[1] += 1
    before, after = layer(x, w), layer(x, other)
    torch.testing.assert_close(before[0], after[0])
    assert not torch.allclose(before[1], after[1], atol=1e-2)


def test_bfloat16_stays_bfloat16_and_near_float32():
    layer, x, w = make(8, 4), draws(2, 8, 4, 4), draws(2, 4, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.bfloat16(), w)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x, w), atol=0.05, rtol=0.05)
