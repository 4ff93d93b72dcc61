"""Pretraining on real pairs, before a run begins. The weights are kept in the cache for every run of the same data."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gan_t2i.checkpoint import below, load_optimizer, load_weights, optimizer_tensors, read_tensors, write_tensors
from gan_t2i.core.config import Count, Positive, StrictConfig
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.files import cache_dir
from gan_t2i.core.images import composite_on_grey_uint8, from_uint8
from gan_t2i.core.log import training_bar
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.data.batches.sampler import Batch, Sampler
from gan_t2i.data.packing import PackedDataset
from gan_t2i.models.autoencoders.base import Autoencoder
from gan_t2i.ops.resample import avg_pool_to
from gan_t2i.text.cache import TextCache
from gan_t2i.text.encoder import SentenceEncoder

log = logging.getLogger(__name__)

LARGEST_GRADIENT = 1.0  # norm; wide autoencoders ran away without it
COOLDOWN = 0.4  # share of the pretraining over which the learning rate falls to 0


class PretrainingConfig(StrictConfig):
    """Settings that every pretraining has."""

    kimg: Positive
    """Length, in thousands of real images."""
    batch: Count = 32
    learning_rate: Positive


@dataclass(frozen=True)
class RealPairs:
    """The pairs to pretrain on, the text encoder, and how to compute."""

    dataset: PackedDataset
    encoder: SentenceEncoder
    cache: TextCache  # of the data set's captions
    device: torch.device
    seed: int
    precision: str
    autoencoder: Autoencoder

    def images(self, batch: Batch, side: int) -> Tensor:
        """Return the images of a batch in [-1, 1], averaged down to `side`, on the device: [N, 3, side, side]."""
        return avg_pool_to(from_uint8(composite_on_grey_uint8(batch.images).to(self.device)), side)

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Return what D judges of real uint8 images [N, C, R, R] as packed, on the device: latents, or pixels in [-1, 1] over grey."""
        if self.autoencoder.is_identity:
            return from_uint8(composite_on_grey_uint8(images).to(self.device))
        return self.autoencoder.encode(from_uint8(images.to(self.device)))


def cached_weights(name: str, key: Sequence[object]) -> Path:
    """Return the file in the cache for the weights of a network called `name`, made under `key` (JSON-able)."""
    return cache_dir() / f"{name}s" / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.safetensors"


def train_or_load(network: nn.Module, name: str, key: Sequence[object], train: Callable[[], None], *, verb: str = "pretrained") -> None:
    """Load the weights that an earlier run cached under `key` (JSON-able), or call `train` and cache them; `verb` is for messages."""
    path = cached_weights(name, key)
    if path.is_file():
        try:
            load_weights(network, read_tensors(path)[0], str(path))
            log.info(f"{name}: {verb} before, {path}")
            return
        except GanT2IError as error:
            log.warning(f"the {name} is {verb} again: {error}")
    train()
    write_tensors(path, network.state_dict(), {"type": name})


def pretrain_or_load(network: nn.Module, name: str, key: Sequence[object], pairs: RealPairs, pretrain: Callable[[], None]) -> None:
    """Load or train as `train_or_load` does, for a network that learns from `pairs`, and log the beginning."""

    def first_time() -> None:
        log.info(f"{name}: pretraining on {len(pairs.dataset.train):,} real pictures and their captions (once)")
        pretrain()

    train_or_load(network, name, key, first_time)


def rate_factor(nimg: int, batch: int, total: int) -> float:
    """Return the learning rate after `nimg` of `total` images, as a share of the configured one: it rises over 2,000 and falls at the end."""
    return min(1.0, (nimg + batch) / 2000, (total - nimg) / (COOLDOWN * total))


class AveragedAdam:
    """Adam whose rates follow `rate_factor`, and the moving average of the weights that it trains.

    Args:
        rates: networks, trainable from here to `finish`, with the highest learning rate of each.
        device: where the networks are.
    """

    def __init__(self, rates: Mapping[nn.Module, float], device: torch.device) -> None:
        self.networks, self.rates = [network.requires_grad_(True) for network in rates], list(rates.values())
        groups = [{"params": list(network.parameters()), "lr": rate} for network, rate in rates.items()]
        self.parameters = [p for network in self.networks for p in network.parameters()]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=device.type != "mps")
        self.average = [p.detach().clone() for p in self.parameters]

    def step(self, loss: Tensor, nimg: int, batch: int, total: int) -> None:
        """Move the weights along the gradients of `loss`, after `nimg` of `total` images."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * rate_factor(nimg, batch, total)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, LARGEST_GRADIENT)
        self.optimizer.step()
        self.optimizer.zero_grad()
        step = nimg // batch + 1
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - min(0.999, (1 + step) / (10 + step)))

    def tensors(self) -> dict[str, Tensor]:
        """Return the average and the moments, by name."""
        average = {f"average/{number}": tensor for number, tensor in enumerate(self.average)}
        return average | {f"adam/{key}": tensor for key, tensor in optimizer_tensors(self.optimizer).items()}

    def load(self, tensors: dict[str, Tensor], where: str) -> None:
        """Load what `tensors` gave; raises `GanT2IError` where that does not fit."""
        saved = below(tensors, "average")
        for number, own in enumerate(self.average):
            average = saved.get(str(number))
            if average is None or average.shape != own.shape or not average.isfinite().all():
                raise GanT2IError(f"{where}: tensor average/{number} is missing or no average of its parameter")
        load_optimizer(self.optimizer, below(tensors, "adam"), where)
        for number, own in enumerate(self.average):
            own.copy_(saved[str(number)])

    @torch.no_grad()
    def finish(self) -> None:
        """Give the networks the average, and freeze them."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.copy_(average)
        for network in self.networks:
            network.requires_grad_(False)


def train_on_pairs(
    network: nn.Module,
    loss_of: Callable[[Batch, torch.Generator], Tensor],
    pairs: RealPairs,
    config: PretrainingConfig,
    *,
    name: str,
    stream: str | None = None,
    kimg: float | None = None,
) -> None:
    """Train `network`, which is frozen before and after, on the training pairs.

    Args:
        network: changed in place.
        loss_of: a batch and its seeded generator -> loss, a scalar.
        pairs: the data.
        config: length, batch and learning rate.
        name: for the progress bar.
        stream: key of the random numbers, `name` by default.
        kimg: length in place of the config's.
    """
    network.requires_grad_(True)
    rate, batch = config.learning_rate, config.batch
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.9, 0.99), fused=pairs.device.type != "mps")
    total = max(batch, round((config.kimg if kimg is None else kimg) * 1000))
    sampler = Sampler(pairs.dataset, pairs.seed, ())
    with training_bar(name, total, 0) as bar:
        for nimg in range(0, total, batch):
            loss = loss_of(sampler.batch(nimg, batch), seeded_rng(pairs.seed, stream or name, nimg))
            optimizer.param_groups[0]["lr"] = rate * rate_factor(nimg, batch, total)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            bar.update(batch)
            if nimg // batch % 50 == 0:
                bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    network.requires_grad_(False)


def add_noise(images: Tensor, largest_std: float, rng: torch.Generator) -> Tensor:
    """Add normal noise to images [N, ...], with a standard deviation for each that is uniform from 0 to `largest_std`."""
    strength = largest_std * torch.rand(len(images), 1, 1, 1, generator=rng)
    return images + (strength * torch.randn(images.shape, generator=rng)).to(images.device)
