"""The networks of a run with their optimizers, built from its config."""

import copy
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from gan_t2i import registry
from gan_t2i.core.errors import UsageError
from gan_t2i.core.phases import phase
from gan_t2i.core.runtime import seeded_weights
from gan_t2i.models.autoencoders.base import SMALLEST_SIDE, Autoencoder
from gan_t2i.models.base import Discriminator, Generator
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.ops.checkpointing import enable_checkpointing
from gan_t2i.training.config import TrainConfig


@dataclass
class Networks:
    """G, D, G's moving average, the autoencoder whose latents they work in, both optimizers, and frozen networks of auxiliary losses."""

    G: Generator
    D: Discriminator
    G_ema: Generator
    autoencoder: Autoencoder
    g_optimizer: torch.optim.Adam
    d_optimizer: torch.optim.Adam
    auxiliary: dict[str, nn.Module] = field(default_factory=dict)
    """Frozen networks by name, pretrained before the run. The state keeps them, so that a run resumes with the very same."""

    @cached_property
    def images(self) -> Generator:
        """G's average as a generator of images, always the same one, whose pictures a GPU captures once."""
        return self.G_ema if self.autoencoder.is_identity else LatentGenerator(self.G_ema, self.autoencoder).eval()


def check_networks(config: TrainConfig) -> None:
    """Raise `GanT2IError` where the networks cannot be built at this resolution; on the meta device that costs next to nothing."""
    spec = config.autoencoder
    with torch.device("meta"):
        autoencoder = registry.build("autoencoder", spec.name, spec.params, resolution=config.resolution, channels=config.data.channels)
    interface = latent_interface(config, autoencoder)
    if interface["resolution"] < SMALLEST_SIDE:
        largest = config.resolution // SMALLEST_SIDE
        raise UsageError(
            f"autoencoder {config.autoencoder.name}: at {config.resolution} px its latents are {interface['resolution']} on a side, and the "
            f"networks need {SMALLEST_SIDE}: set autoencoder.params.factor to at most {largest}, or raise resolution"
        )
    with torch.device("meta"):
        _build(config, {**interface, "text_width": 1, "max_tokens": 1})


def latent_interface(config: TrainConfig, autoencoder: Autoencoder) -> dict[str, int]:
    """Return the side (`resolution`) and the `channels` of what G draws."""
    return {"resolution": config.resolution // autoencoder.factor, "channels": autoencoder.latent_channels}


def build_networks(config: TrainConfig, interface: dict[str, int], autoencoder: Autoencoder, device: torch.device) -> Networks:
    """Build both networks with weights drawn from the run's seed alone, their optimizers, and G's moving average."""
    with seeded_weights(config.seed):
        G, D = _build(config, interface)
    # channels_last is the fastest layout of CPU and GPU convolutions in bfloat16: two to four times NCHW's speed in resampling on a CPU
    G, D = G.to(device).to(memory_format=torch.channels_last), D.to(device).to(memory_format=torch.channels_last)
    betas = (config.optimizer.beta1, config.optimizer.beta2)

    def adam(network: nn.Module, rate: float) -> torch.optim.Adam:
        parameters, on_gpu = [p for p in network.parameters() if p.requires_grad], device.type == "cuda"
        # a captured step reads its rate from the GPU
        lr = torch.tensor(rate, device=device) if on_gpu else rate
        return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=device.type != "mps", capturable=on_gpu)

    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    if config.checkpointing:
        enable_checkpointing(G)
        enable_checkpointing(D)
    return Networks(G, D, G_ema, autoencoder, adam(G, config.optimizer.g_lr), adam(D, config.optimizer.d_lr))


def _build(config: TrainConfig, interface: dict[str, int]) -> tuple[Generator, Discriminator]:
    G: Generator = registry.build("generator", config.generator.name, config.generator.params, **interface)
    own = {name: size for name, size in interface.items() if name != "channels"}
    # D sees transparent pixels over a colour, so without alpha
    own["input_channels"] = 3 if config.autoencoder.name == "pixels" else interface["channels"]
    D: Discriminator = registry.build("discriminator", config.discriminator.name, config.discriminator.params, **own)
    return G, D


@phase("EMA")
@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, share: Tensor) -> None:
    """Replace the `share`, a scalar on their device, of the weights of `average` by those of `network`; buffers are copied."""
    averages: list[Tensor] = list(average.parameters())
    targets: list[Tensor] = list(network.parameters())
    if share.device.type == "cpu":
        torch._foreach_lerp_(averages, targets, [share] * len(averages))
    else:  # few launches, where lerp takes one for each tensor
        moves = torch._foreach_sub(targets, averages)
        torch._foreach_mul_(moves, share)
        torch._foreach_add_(averages, moves)
    for old, new in zip(average.buffers(), network.buffers(), strict=True):
        old.copy_(new)
