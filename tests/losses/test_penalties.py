import pytest
import torch

from gan_t2i.losses.penalties import finite_difference_penalty, gradient_penalty

SHAPE = (3, 4, 4)


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


A = draws(*SHAPE, seed=1)
SQUARED = A.square().sum()


def linear_critic(x):
    return (x * A).sum(dim=(1, 2, 3))


def quadratic_critic(x):
    return (x.square() * A).sum(dim=(1, 2, 3)) / 2


def test_a_linear_critic_has_the_penalty_of_its_weights_squared():
    torch.testing.assert_close(gradient_penalty(linear_critic, draws(2, *SHAPE)), SQUARED.expand(2))


def test_a_quadratic_critic_is_penalised_by_place():
    x = draws(2, *SHAPE)
    torch.testing.assert_close(gradient_penalty(quadratic_critic, x), (x * A).square().sum(dim=(1, 2, 3)))


def test_the_gradient_penalty_can_be_descended():
    scale = torch.tensor(2.0, requires_grad=True)
    gradient_penalty(lambda x: scale * linear_critic(x), draws(2, *SHAPE)).mean().backward()
    torch.testing.assert_close(scale.grad, 2 * 2.0 * SQUARED)


@pytest.mark.parametrize("penalty", [gradient_penalty, lambda critic, x: finite_difference_penalty(critic, x, torch.ones_like(x), 0.1)])
def test_penalties_are_float32_one_a_picture_and_leave_the_pictures_alone(penalty):
    images = draws(2, *SHAPE).requires_grad_()
    weight = torch.ones((), requires_grad=True)
    values = penalty(lambda x: weight * linear_critic(x), images)
    assert values.shape == (2,)
    assert values.dtype == torch.float32
    values.sum().backward()
    assert images.grad is None
    assert weight.grad != 0


def test_the_finite_difference_is_exact_for_known_noise():
    x, noise = draws(2, *SHAPE), draws(2, *SHAPE, seed=2)
    wanted = (noise * A).sum(dim=(1, 2, 3)).square()
    torch.testing.assert_close(finite_difference_penalty(linear_critic, x, noise, 0.5), wanted, atol=1e-4, rtol=1e-4)
    step = 0.5
    bent = ((x * A * noise).sum(dim=(1, 2, 3)) + step / 2 * (A * noise.square()).sum(dim=(1, 2, 3))).square()
    torch.testing.assert_close(finite_difference_penalty(quadratic_critic, x, noise, step), bent, atol=1e-3, rtol=1e-3)


def test_the_finite_difference_tends_to_the_gradient_penalty_over_noise():
    # (e . a)^2 / |a|^2 is chi-squared with one degree of freedom: over 20,000 draws the standard error of its mean is 0.01
    n = 20_000
    values = finite_difference_penalty(linear_critic, draws(1, *SHAPE).expand(n, *SHAPE), draws(n, *SHAPE, seed=3), 0.01)
    assert values.mean() / SQUARED == pytest.approx(1, abs=0.05)
