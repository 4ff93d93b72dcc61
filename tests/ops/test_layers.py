import pytest
import torch

from gan_t2i.core.errors import UsageError
from gan_t2i.ops.layers import activate, channels_at, conv, linear, to_map, to_sequence


def test_layers_and_activation_keep_the_second_moment():
    torch.manual_seed(0)
    x = torch.randn(2000, 64)
    assert 0.95 < activate(x).square().mean() < 1.05
    assert 0.9 < linear(64, 64)(x).square().mean() < 1.1
    assert 0.9 < conv(16, 64, 3)(torch.randn(4, 16, 16, 16))[..., 1:-1, 1:-1].square().mean() < 1.1


def test_gain_and_bias_start_as_configured():
    torch.manual_seed(0)
    layer = linear(64, 256, gain=0.5, bias=1.0)
    assert (layer.bias == 1).all()
    assert 0.9 < layer.weight.std() * 8 / 0.5 < 1.1
    assert (conv(2, 3, 3).bias == 0).all()


def test_channels_shrink_with_resolution_and_never_vanish():
    assert [channels_at(r, 512, 128) for r in (4, 8, 16, 512)] == [128, 64, 32, 1]
    with pytest.raises(UsageError, match="channel_base = 128: no channel is left at 256 px"):
        channels_at(256, 128, 64)


def test_a_map_survives_being_a_sequence():
    x = torch.randn(2, 3, 4, 5)
    assert to_sequence(x).shape == (2, 20, 3)
    assert torch.equal(to_sequence(x)[1, 7], x[1, :, 1, 2])
    assert torch.equal(to_map(to_sequence(x), x), x)
