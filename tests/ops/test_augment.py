import pytest
import torch

from gan_t2i.core.errors import UsageError
from gan_t2i.ops.augment import AugmentConfig, augment, cut_out, random_changes, translate

EACH = [{"translation": 0.25}, {"cutout": 0.5}, {"brightness": 0.5}, {"saturation": 0.5}]
ALL = {key: value for one in EACH for key, value in one.items()}


def pictures(n=2, size=8, dtype=torch.float32):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


def changed(images, seed=0, **strengths):
    config = AugmentConfig(**strengths)
    return augment(images, config, random_changes(len(images), config, torch.Generator().manual_seed(seed)))


def test_zero_strengths_are_the_identity():
    images = pictures()
    assert torch.equal(changed(images), images)


@pytest.mark.parametrize("strengths", [*EACH, ALL])
def test_same_draws_same_pictures_and_other_draws_other_pictures(strengths):
    images = pictures()
    assert torch.equal(changed(images, **strengths), changed(images, **strengths))
    assert not torch.equal(changed(images, **strengths), changed(images, seed=1, **strengths))
    assert not torch.equal(changed(images, **strengths), images)


@pytest.mark.parametrize("strengths", [*EACH, ALL])
def test_every_item_gets_its_own_draw(strengths):
    first, second = changed(pictures(1).repeat(2, 1, 1, 1), **strengths)
    assert not torch.equal(first, second)


def test_draws_come_from_the_generator_alone():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    changed(pictures(), **ALL)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_translation_moves_by_the_shift_and_repeats_the_edge():
    images = pictures(2, size=4)
    moved = translate(images, torch.tensor([[0.25, -0.5], [0.0, 0.0]]))  # one down, two left; nothing
    assert torch.equal(moved[0, :, 1:, :2], images[0, :, :-1, 2:])
    assert torch.equal(moved[0, :, 0], moved[0, :, 1])
    assert torch.equal(moved[0, :, :, 3], moved[0, :, :, 1])
    assert torch.equal(moved[1], images[1])


def test_translation_scales_each_direction_by_its_own_side():
    image = torch.arange(8.0).expand(1, 3, 4, 8)
    assert torch.equal(translate(image, torch.tensor([[0.5, 0.5]]))[0, 0, 0], torch.tensor([0.0, 0, 0, 0, 0, 1, 2, 3]))


def test_cutout_greys_a_square_round_its_centre():
    cut = cut_out(torch.ones(2, 3, 8, 8), torch.tensor([[0.5, 0.5], [0.0, 0.25]]), 0.5)
    wanted = torch.ones(2, 3, 8, 8)
    wanted[0, :, 2:6, 2:6] = 0
    wanted[1, :, :2, :4] = 0
    assert torch.equal(cut, wanted)


def test_brightness_adds_one_number_and_saturation_moves_from_grey():
    images = pictures()
    brighter = changed(images, brightness=0.5) - images
    torch.testing.assert_close(brighter, brighter[:, :1, :1, :1].expand_as(brighter))
    assert 0 < brighter.abs().max() <= 0.5
    coloured = changed(images, saturation=0.5)
    torch.testing.assert_close(coloured.mean(dim=1), images.mean(dim=1))
    factor = ((coloured - coloured.mean(1, keepdim=True)) / (images - images.mean(1, keepdim=True))).flatten(1)
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor), atol=1e-3, rtol=1e-3)
    assert ((factor > 0.5) & (factor < 1.5)).all()


@pytest.mark.parametrize("strengths", [*EACH, ALL])
def test_derivatives_reach_the_pictures(strengths):
    images = pictures(2, size=4, dtype=torch.float64).requires_grad_()

    def bent(x):
        return changed(x, **strengths).pow(3)  # nothing to see in the second derivative of what is linear

    assert torch.autograd.gradcheck(bent, (images,))
    assert torch.autograd.gradgradcheck(bent, (images,), atol=1e-4)
    (gradient,) = torch.autograd.grad(bent(images).sum(), images)
    assert (gradient.flatten(1).abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize(("key", "value"), [("translation", -0.1), ("cutout", 1.5)])
def test_a_strength_outside_zero_to_one_is_refused(key, value):
    with pytest.raises(UsageError, match=rf"config key augment.{key} = {value}: input should be"):
        AugmentConfig.parse({key: value}, where="augment")
