"""Everything that changes over a run, as pure functions of nimg, the number of training pictures shown."""

from gan_t2i.ops.augment import AugmentConfig
from gan_t2i.training.config import BlurConfig, EmaConfig, LossConfig, OptimizerConfig


def learning_rate_factor(nimg: int, total: float, config: OptimizerConfig) -> float:
    """What to multiply the learning rates with: a linear rise over the warm-up, then 1, then a linear fall to 0 at `total` pictures."""
    warmup, cooldown = config.warmup_kimg * 1000, config.cooldown_kimg * 1000
    rise = min(1.0, (nimg + 1) / warmup) if warmup else 1.0
    fall = min(1.0, max(0.0, total - nimg) / cooldown) if cooldown else 1.0
    return rise * fall


def augment_at(nimg: int, config: AugmentConfig) -> AugmentConfig:
    """How strongly pictures are changed: a linear rise over the ramp, then as configured.

    A ramp and not the adaptive strength of StyleGAN2-ADA (arXiv 2006.06676): that one moves by all of its range within 500 kimg, and a run of
    an hour on a CPU shows 300; its statistic, the sign of D at real pictures, says nothing under a relativistic loss, which leaves the zero of
    D open; and it would be a state to save, to exchange and to go back with.
    """
    ramp = config.ramp_kimg * 1000
    return config.times(min(1.0, nimg / ramp)) if ramp else config


def reconstruction_weight(nimg: int, config: LossConfig) -> float:
    """Weight of the distance to real pictures: as configured, or falling linearly from that to 0."""
    if config.reconstruction_kimg is None:
        return config.reconstruction_weight
    return config.reconstruction_weight * max(0.0, 1 - nimg / (config.reconstruction_kimg * 1000))


def blur_sigma(nimg: int, kimg: float, config: BlurConfig) -> float:
    """Standard deviation of the blur, as a share of the side, at `nimg` in a run of `kimg`: a linear fall (StyleGAN3, arXiv 2106.12423)."""
    return config.sigma * max(0.0, 1 - nimg / (config.share * kimg * 1000))


def ema_decay(nimg: int, batch: int, config: EmaConfig) -> float:
    """Share of the old average that survives a step of `batch` pictures: half of it after the half-life."""
    half_life = config.half_life_kimg * 1000
    if config.ramp:
        half_life = min(half_life, nimg * config.ramp)
    return 0.5 ** (batch / half_life) if half_life else 0.0


def crosses(nimg: int, batch: int, interval_kimg: float) -> bool:
    """Whether the step of `batch` pictures that ended at `nimg` passed a multiple of the interval."""
    interval = interval_kimg * 1000
    return nimg // interval > (nimg - batch) // interval
