"""Schedules of a run, as pure functions of nimg, the number of training images shown."""

from gan_t2i.training.config import EmaConfig, OptimizerConfig


def learning_rate_factor(nimg: int, total: float, config: OptimizerConfig) -> float:
    """Return the factor of the learning rates: a linear rise over the warm-up, then 1, then a linear fall to 0 at `total` images."""
    warmup, cooldown = config.warmup_kimg * 1000, config.cooldown_kimg * 1000
    rise = min(1.0, (nimg + 1) / warmup) if warmup else 1.0
    fall = min(1.0, max(0.0, total - nimg) / cooldown) if cooldown else 1.0
    return rise * fall


def ema_decay(nimg: int, batch: int, config: EmaConfig) -> float:
    """Return the share of the old average that survives a step of `batch` images: half of it after the half-life."""
    half_life = config.half_life_kimg * 1000
    if config.ramp:
        half_life = min(half_life, nimg * config.ramp)
    return 0.5 ** (batch / half_life) if half_life else 0.0


def crosses(nimg: int, batch: int, interval_kimg: float) -> bool:
    """True if the step of `batch` images that ended at `nimg` passed a multiple of the interval."""
    interval = interval_kimg * 1000
    return nimg // interval > (nimg - batch) // interval
