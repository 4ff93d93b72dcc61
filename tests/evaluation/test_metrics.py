"""The figures over features, against direct formulas and against sets whose worth is known."""

import math

import pytest
import torch
from torch import Tensor

from gan_t2i.evaluation import metrics


@pytest.fixture
def real() -> Tensor:
    return normal(400, 16, 0)


def normal(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def kid(real: Tensor, generated: Tensor) -> tuple[float, float]:
    return metrics.kid(real, generated, torch.Generator().manual_seed(0))


def test_mmd_is_the_mean_of_the_kernel_over_different_pairs() -> None:
    x, y = normal(5, 3, 1).tolist(), normal(4, 3, 2).tolist()

    def kernel(a: list[float], b: list[float]) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / 3 + 1) ** 3

    def within(z: list[list[float]]) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
        return sum(pairs) / len(pairs)

    cross = [kernel(a, b) for a in x for b in y]
    expected = within(x) + within(y) - 2 * sum(cross) / len(cross)
    assert metrics.mmd(torch.tensor(x), torch.tensor(y)).item() == pytest.approx(expected, rel=1e-5)


def test_kid_is_unbiased_and_rises_with_the_difference(real: Tensor) -> None:
    same = [metrics.mmd(normal(100, 16, seed), normal(100, 16, 1000 + seed)).item() for seed in range(200)]
    error = torch.tensor(same).std().item() / math.sqrt(len(same))
    assert abs(sum(same) / len(same)) < 3 * error
    assert min(same) < 0 < max(same)
    near, deviation = kid(real, normal(400, 16, 1) + 0.3)
    assert abs(kid(real, normal(400, 16, 1))[0]) < near < kid(real, normal(400, 16, 1) + 0.6)[0]
    assert deviation > 0
    assert kid(real, normal(400, 16, 1) + 0.3) == (near, deviation)


def test_frechet_of_gaussians_and_of_the_same_set(real: Tensor) -> None:
    assert metrics.frechet(real, real) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet(real, real + 2) == pytest.approx(4 * 16, rel=1e-6)
    # the covariance of 3 x is 9 times that of x: tr(S + 9 S - 2 * 3 S) = 4 tr(S)
    centred = real - real.mean(dim=0)
    assert metrics.frechet(centred, 3 * centred) == pytest.approx(4 * torch.cov(centred.double().T).trace().item(), rel=1e-6)
    assert metrics.enough_for_frechet(33, 16)
    assert not metrics.enough_for_frechet(32, 16)


def test_precision_recall_density_and_coverage_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    generated = torch.tensor([[0.5], [0.6], [5.0]])
    # with k = 1 every real radius is 1; those of the generated ones are 0.1, 0.1 and 4.4
    assert metrics.radii(real, 1).tolist() == [1, 1, 1, 1]
    precision, recall = metrics.precision_recall(real, generated, k=1)
    assert precision == pytest.approx(2 / 3)
    assert recall == pytest.approx(1 / 4)  # 1 lies within 4.4 of 5, the others do not
    density, coverage = metrics.density_coverage(real, generated, k=1)
    assert density == pytest.approx(4 / 3)  # 0.5 and 0.6 in two balls each
    assert coverage == pytest.approx(2 / 4)


def test_the_same_set_is_covered_and_a_collapsed_one_covers_little(real: Tensor) -> None:
    assert metrics.density_coverage(real, real)[1] == 1
    assert metrics.precision_recall(real, real) == (1, 1)
    other, collapsed = normal(400, 16, 1), normal(4, 16, 1).repeat(100, 1)
    assert metrics.density_coverage(real, other)[1] > 0.9
    assert metrics.density_coverage(real, collapsed)[1] < 0.2
    assert metrics.precision_recall(real, other)[1] > 0.7
    assert metrics.precision_recall(real, collapsed)[1] == 0
    assert kid(real, collapsed)[0] > 10 * abs(kid(real, other)[0])


def test_an_equal_picture_is_at_no_distance(real: Tensor) -> None:
    far = real + 1000  # where float32 loses the small differences
    found, places = metrics.nearest(far[:50], far, 2)
    assert found[:, 0].max() < 1e-3
    assert places[:, 0].tolist() == list(range(50))
    assert (found[:, 1] > 0.5).all()


def test_diversity_is_none_for_one_picture_and_one_for_unrelated_ones(real: Tensor) -> None:
    assert metrics.diversity(real[:20, None].repeat(1, 4, 1), real) == pytest.approx(0, abs=1e-9)
    assert metrics.diversity(normal(400, 16, 3).reshape(100, 4, 16), real) == pytest.approx(1, abs=0.03)
    assert metrics.diversity(0.5 * normal(400, 16, 3).reshape(100, 4, 16), real) == pytest.approx(0.5, abs=0.02)
