"""The networks of a run with their optimizers, built from its config."""

import copy
from dataclasses import dataclass, field

import torch
from torch import nn

from gan_t2i import registry
from gan_t2i.core.phases import phase
from gan_t2i.core.runtime import seeded_weights
from gan_t2i.models.base import Discriminator, Generator
from gan_t2i.ops.checkpointing import enable_checkpointing
from gan_t2i.training.config import TrainConfig


@dataclass
class Networks:
    """G, D, G's moving average, both optimizers, and frozen networks that auxiliary losses use."""

    G: Generator
    D: Discriminator
    G_ema: Generator
    g_optimizer: torch.optim.Adam
    d_optimizer: torch.optim.Adam
    auxiliary: dict[str, nn.Module] = field(default_factory=dict)
    """Frozen networks by name, pretrained before the run. The state keeps them, so that a run resumes with the very same."""


def check_networks(config: TrainConfig) -> None:
    """Raise `GanT2IError` where the networks cannot be built at this resolution; on the meta device that costs next to nothing."""
    with torch.device("meta"):
        _build(config, {"resolution": config.resolution, "text_width": 1, "max_tokens": 1})


def build_networks(config: TrainConfig, interface: dict[str, int], device: torch.device) -> Networks:
    """Build both networks with weights drawn from the run's seed alone, their optimizers, and G's moving average."""
    with seeded_weights(config.seed):
        G, D = _build(config, interface)
    # channels_last is the fastest layout of CPU and GPU convolutions in bfloat16: two to four times NCHW's speed in resampling on a CPU
    G, D = G.to(device).to(memory_format=torch.channels_last), D.to(device).to(memory_format=torch.channels_last)
    betas = (config.optimizer.beta1, config.optimizer.beta2)

    def adam(network: nn.Module, rate: float) -> torch.optim.Adam:
        return torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=rate, betas=betas, fused=device.type != "mps")

    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    if config.checkpointing:
        enable_checkpointing(G)
        enable_checkpointing(D)
    return Networks(G, D, G_ema, adam(G, config.optimizer.g_lr), adam(D, config.optimizer.d_lr))


def _build(config: TrainConfig, interface: dict[str, int]) -> tuple[Generator, Discriminator]:
    G: Generator = registry.build("generator", config.generator.name, config.generator.params, **interface, channels=config.data.channels)
    D: Discriminator = registry.build("discriminator", config.discriminator.name, config.discriminator.params, **interface)
    return G, D


@phase("EMA")
@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the weights of `average` towards those of `network`; buffers are copied."""
    targets = [p.detach() for p in network.parameters()]
    torch._foreach_lerp_([p.detach() for p in average.parameters()], targets, 1 - decay)
    for old, new in zip(average.buffers(), network.buffers(), strict=True):
        old.copy_(new)
