"""Schedules of a run."""

import math

import pytest

from gan_t2i.losses.terms.reconstruction import ReconstructionTerm
from gan_t2i.training.config import EmaConfig, OptimizerConfig
from gan_t2i.training.schedule import crosses, ema_decay, learning_rate_factor


def test_warm_up_rises_linearly_to_one() -> None:
    config = OptimizerConfig(warmup_kimg=0.1)
    assert learning_rate_factor(0, 1e12, config) == pytest.approx(0.01)
    assert learning_rate_factor(49, 1e12, config) == pytest.approx(0.5)
    assert learning_rate_factor(99, 1e12, config) == learning_rate_factor(100, 1e12, config) == learning_rate_factor(10**9, 1e12, config) == 1
    assert learning_rate_factor(0, 1e12, OptimizerConfig(warmup_kimg=0)) == 1


def test_cool_down_falls_linearly_to_zero_at_the_end() -> None:
    config = OptimizerConfig(warmup_kimg=0, cooldown_kimg=0.2)
    assert learning_rate_factor(0, 1000, config) == learning_rate_factor(800, 1000, config) == 1
    assert learning_rate_factor(900, 1000, config) == pytest.approx(0.5)
    assert learning_rate_factor(1000, 1000, config) == learning_rate_factor(1016, 1000, config) == 0


@pytest.mark.parametrize("batch", [1, 4, 16, 500])
def test_after_its_half_life_half_of_the_average_is_left(batch: int) -> None:
    config = EmaConfig(half_life_kimg=2, ramp=0)
    left = math.prod(ema_decay(nimg, batch, config) for nimg in range(batch, 2000 + batch, batch))
    assert left == pytest.approx(0.5)


def test_the_ramp_keeps_early_averages_young() -> None:
    config = EmaConfig(half_life_kimg=2, ramp=0.1)
    assert ema_decay(1000, 16, config) == pytest.approx(0.5 ** (16 / 100))  # a tenth of what was shown
    assert ema_decay(20000, 16, config) == ema_decay(10**7, 16, config) == pytest.approx(0.5 ** (16 / 2000))
    assert ema_decay(0, 16, config) == 0
    assert ema_decay(100, 16, EmaConfig(half_life_kimg=0, ramp=0)) == 0


def test_the_pull_to_real_images_falls_to_nothing_or_stays() -> None:
    falling = ReconstructionTerm(ReconstructionTerm.Config(weight=10, kimg=40))
    assert [falling.weight_at(nimg) for nimg in (0, 20_000, 40_000, 90_000)] == [10, 5, 0, 0]
    assert ReconstructionTerm(ReconstructionTerm.Config(weight=10)).weight_at(90_000) == 10


def test_crosses_once_an_interval() -> None:
    assert [nimg for nimg in range(16, 200, 16) if crosses(nimg, 16, 0.05)] == [64, 112, 160]
    assert [nimg for nimg in range(4, 41, 4) if crosses(nimg, 4, 0.008)] == [8, 16, 24, 32, 40]
    assert all(crosses(nimg, 16, 0.001) for nimg in range(16, 100, 16))
    # 0.3 kimg is no whole number in binary; still once in 300 pictures
    assert sum(crosses(nimg, 4, 0.3) for nimg in range(4, 30001, 4)) == 100
