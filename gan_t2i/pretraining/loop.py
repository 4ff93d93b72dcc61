"""Lessons by real pairs alone, before a run begins; what was learned is kept in the cache for every run of the same data."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gan_t2i.checkpoint import load_weights, read_tensors, write_tensors
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.files import cache_dir
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.batches.sampler import Batch, Sampler

log = logging.getLogger(__name__)

COOLDOWN = 0.4  # share of a lesson over which the learning rate falls to 0


def train_or_load(network: nn.Module, name: str, key: Sequence[object], lesson: Callable[[], None]) -> None:
    """Give `network` the weights that an earlier run's `lesson` left under the same `key` (JSON-able), or take the lesson and leave them."""
    path = cache_dir() / f"{name}s" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            load_weights(network, read_tensors(path)[0], str(path))
            log.info(f"{name}: taught before, {path}")
            return
        except GanT2IError as error:
            log.info(f"the {name} is taught again: {error}")
    lesson()
    write_tensors(path, network.state_dict(), {"type": name})


def train_on_pairs(
    network: nn.Module,
    loss_of: Callable[[Batch, torch.Generator], Tensor],
    sampler: Sampler,
    *,
    name: str,
    seed: int,
    kimg: float,
    batch: int,
    learning_rate: float,
    fused: bool,
) -> None:
    """Train `network` on the loss of each batch of `sampler`, whose draws come from the generator given; frozen before and after."""
    network.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=fused)
    total = max(batch, round(kimg * 1000))
    with tqdm(total=total, desc=name, unit="img", unit_scale=True, disable=None) as bar:
        for nimg in range(0, total, batch):
            loss = loss_of(sampler.batch(nimg, batch), seeded_rng(seed, name, nimg))
            optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (nimg + batch) / 2000, (total - nimg) / (COOLDOWN * total))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            bar.update(batch)
            if nimg // batch % 50 == 0:
                bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    network.requires_grad_(False)


def add_noise(pictures: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Pictures [N, ...] with noise whose standard deviation is another for each, from 0 to `most`."""
    strength = most * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    return pictures + (strength * torch.randn(pictures.shape, generator=generator)).to(pictures.device)
