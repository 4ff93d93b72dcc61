"""Gradients made orthogonal before Adam reads them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gan_t2i.training.orthogonal import orthogonalize, orthogonalize_gradients
from gan_t2i.training.session import Session


@pytest.mark.parametrize("shape", [(32, 32), (32, 288), (288, 32)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float32, 1e-4)])
def test_orthogonalized_matrix_keeps_singular_vectors_and_evens_singular_values(
    shape: tuple[int, int], scale: float, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    singular = torch.logspace(-1, 0, 32)  # the least is a twenty-fifth of the norm
    [result] = orthogonalize((scale * u @ torch.diag(singular) @ v)[None], dtype)
    assert result.shape == shape
    assert result.dtype == torch.float32
    in_place = u.T @ result @ v.T
    assert in_place.diagonal().min() > 0.6
    assert in_place.diagonal().max() < 1.3
    assert (in_place - torch.diag(in_place.diagonal())).abs().max() < tolerance


def test_matrix_of_zeros_stays_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 16, 24), torch.bfloat16), torch.zeros(2, 16, 24))


def test_kernels_are_read_as_matrices_and_thin_ones_and_scalars_are_left_alone() -> None:
    shapes = ((24, 16, 3, 3), (24, 144), (3, 24, 1, 1), (), (24, 24))
    kernel, matrix, thin, scale, unused = (torch.nn.Parameter(torch.zeros(shape)) for shape in shapes)
    kernel.data = kernel.data.to(memory_format=torch.channels_last)
    before = {p: torch.randn(p.shape, generator=torch.Generator().manual_seed(p.ndim)) for p in (kernel, matrix, thin, scale)}
    for parameter, gradient in before.items():
        parameter.grad = gradient.clone(memory_format=torch.preserve_format)
    orthogonalize_gradients([kernel, matrix, thin, scale, unused], torch.float32)
    for parameter in (kernel, matrix):  # of one shape as matrices
        assert parameter.grad is not None
        [alone] = orthogonalize(before[parameter].flatten(1)[None], torch.float32)
        torch.testing.assert_close(parameter.grad.flatten(1), alone)
    assert torch.equal(thin.grad, before[thin])
    assert torch.equal(scale.grad, before[scale])
    assert unused.grad is None


def moments(session: Session, network: str) -> dict[str, Tensor]:
    """Return the gradients that Adam read in its first step, up to a factor, by parameter name."""
    optimizer = getattr(session.networks, f"{network.lower()}_optimizer")
    parameters = getattr(session.networks, network).named_parameters()
    return {name: optimizer.state[parameter]["exp_avg"] for name, parameter in parameters if parameter in optimizer.state}


def test_only_the_generator_is_so_driven(make_session: Callable[..., Session]) -> None:
    plain, orthogonal = (make_session(optimizer={"g_orthogonal": flag, "beta1": 0.5}) for flag in (False, True))
    for session in (plain, orthogonal):
        session.run_step(0)
    assert all(torch.equal(value, moments(orthogonal, "D")[name]) for name, value in moments(plain, "D").items())
    for session, even in ((plain, False), (orthogonal, True)):
        values = torch.linalg.svdvals(moments(session, "G")["blocks.0.conv0.weight"].flatten(1))
        assert (values.median() > 0.5 * values.max()) == even
