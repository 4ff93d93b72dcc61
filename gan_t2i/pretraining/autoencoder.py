"""The autoencoder of a run: trained on its own pictures and cached, or pretrained, and checked before the game begins."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gan_t2i import registry
from gan_t2i.checkpoint import below, load_weights, read_tensors, write_tensors
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.images import from_uint8
from gan_t2i.core.runtime import product_dtype, seeded_weights
from gan_t2i.core.weights import hash_state
from gan_t2i.data.packing import Indices, PackedDataset
from gan_t2i.models.autoencoders.base import Autoencoder, LatentAutoencoder, TrainingSettings
from gan_t2i.models.autoencoders.hub import HubAutoencoder
from gan_t2i.pretraining.autoencoder_training import AutoencoderTraining
from gan_t2i.pretraining.loop import cached_weights
from gan_t2i.registry import Spec

# To be raised where the network or its training changes, so that cached ones are not taken for it.
VERSION = 4
LEAST_PICTURES = 64
LEAST_PSNR = 20.0  # dB; below it the decoder draws a blur, whatever G learns
CHECKED = 256  # pictures that the PSNR is measured on
STANDARDIZED_ON = 4096  # training pictures that mean and scale of the latents are measured on, at most
_CHUNK = 64  # pictures encoded at a time
IN_PIXELS = 'or train in pixels with --set "autoencoder={name: pixels}"'

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadyAutoencoder:
    """A frozen autoencoder, and what is known of it."""

    network: Autoencoder
    psnr: float | None = None
    """Mean peak signal-to-noise ratio of rebuilt held-out pictures, in dB; None for pixels, and where it was not measured."""
    losses: Sequence[tuple[int, float]] = ()
    """Images shown in its training and the loss there; empty where it was not trained on these pictures."""
    taken_over: bool = False
    """True for that of a training state or snapshot, which is not trained any further."""


def ready_autoencoder(
    spec: Spec,
    dataset: PackedDataset,
    *,
    device: torch.device,
    seed: int,
    precision: str,
    source: Path | None = None,
    init: Path | None = None,
    trained: bool = True,
) -> ReadyAutoencoder:
    """Return the autoencoder of a run on `device`, frozen.

    It is the one in `source`, a training state or a snapshot, if that has one; else it is trained on the pictures of `dataset`, or loaded
    where an earlier run cached it. Training goes on from the one in `init`, if that has one of the same sizes, and keeps the constants of its
    latents, so that they go on meaning the same. With `trained` False the run is only measured, so any weights do. Raises `GanT2IError` where
    there are too few pictures, or where rebuilt pictures are too far from real ones.
    """
    network = build_autoencoder(spec, dataset, seed).to(device).to(memory_format=torch.channels_last).requires_grad_(False).eval()
    if not isinstance(network, LatentAutoencoder):
        return ReadyAutoencoder(network)
    taken_over = load_from(network, source)
    goes_on = not taken_over and load_from(network, init)
    if goes_on and isinstance(network, HubAutoencoder):
        taken_over = True  # it is never trained
    if taken_over or not trained:
        return ReadyAutoencoder(network, taken_over=taken_over)
    if len(dataset.train) < LEAST_PICTURES and not goes_on:
        raise GanT2IError(
            f"autoencoder {spec.name} needs at least {LEAST_PICTURES} training pictures, and there are {len(dataset.train)}: "
            f"add pictures, {IN_PIXELS}"
        )
    if isinstance(network, HubAutoencoder):
        network.load_pretrained()
        standardize(network, dataset)
        return _checked(ReadyAutoencoder(network, rebuilt_psnr(network, dataset)), dataset)
    computed_in = str(product_dtype(device, precision))
    beginning = [hash_state(network)] if goes_on else []
    path = cached_weights("autoencoder", [VERSION, dataset.fingerprint, spec.model_dump(mode="json"), seed, computed_in, *beginning])
    if (cached := _cached(network, path)) is not None:
        return _checked(cached, dataset)
    log.info(f"autoencoder: training {f'that of {init} further ' * goes_on}on {len(dataset.train):,} pictures (once)")
    position = path.with_suffix(".partial.safetensors")
    config = registry.config_for("autoencoder", spec.name, spec.params)
    assert isinstance(config, TrainingSettings)
    training = AutoencoderTraining(network, config, dataset, position, device=device, seed=seed, precision=precision)
    training.run()
    if not goes_on:
        standardize(network, dataset)
    psnr = rebuilt_psnr(network, dataset)
    write_tensors(path, network.state_dict(), {"type": "autoencoder", "psnr": psnr, "losses": training.losses})
    position.unlink(missing_ok=True)
    return _checked(ReadyAutoencoder(network, psnr, training.losses), dataset)


def build_autoencoder(spec: Spec, dataset: PackedDataset, seed: int) -> Autoencoder:
    """Build an autoencoder for the pictures of `dataset`; its weights follow from the seed alone."""
    with seeded_weights(seed):
        network: Autoencoder = registry.build("autoencoder", spec.name, spec.params, resolution=dataset.resolution, channels=dataset.channels)
    return network


def load_from(network: Autoencoder, source: Path | None) -> bool:
    """Load the autoencoder of a training state or snapshot; returns False where there is none, or one of other sizes."""
    if source is None:
        return False
    tensors = read_tensors(source)[0]
    own = below(tensors, "autoencoder") or below({name.replace(".", "/", 1): tensor for name, tensor in tensors.items()}, "autoencoder")
    if own and {name: x.shape for name, x in own.items()} != {name: x.shape for name, x in network.state_dict().items()}:
        log.info(f"autoencoder: that of {source} has other sizes, so this run has its own")
        return False
    if own:
        load_weights(network, {name: tensor.float() for name, tensor in own.items()}, f"{source} (autoencoder)")
    return bool(own)


def _cached(network: Autoencoder, path: Path) -> ReadyAutoencoder | None:
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_tensors(path)
        load_weights(network, tensors, str(path))
        return ReadyAutoencoder(network, float(metadata["psnr"]), metadata["losses"])
    except (GanT2IError, KeyError, TypeError, ValueError) as error:
        log.warning(f"the autoencoder is trained again: {path} cannot be used ({error})")
        return None


def _checked(ready: ReadyAutoencoder, dataset: PackedDataset) -> ReadyAutoencoder:
    """Log what the autoencoder does; raises `GanT2IError` where it loses too much."""
    network, side = ready.network, dataset.resolution // ready.network.factor
    assert ready.psnr is not None
    if ready.psnr < LEAST_PSNR:
        raise GanT2IError(
            f"the autoencoder rebuilds held-out pictures at {ready.psnr:.1f} dB, and {LEAST_PSNR:.0f} are needed: "
            f"raise autoencoder.params.kimg or latent_channels, lower factor, {IN_PIXELS}"
        )
    size = f"{dataset.resolution} px become {side} x {side} latents of {network.latent_channels} numbers"
    log.info(f"autoencoder: {size}; held-out PSNR {ready.psnr:.1f} dB")
    return ready


def heldout_pictures(dataset: PackedDataset) -> Indices:
    """Return the pictures to measure on: held-out ones, or training pictures where fewer than 8 are held out."""
    return (dataset.heldout if len(dataset.heldout) >= 8 else dataset.train)[:CHECKED]


@torch.no_grad()
def standardize(network: LatentAutoencoder, dataset: PackedDataset) -> None:
    """Set the network's constants, so that the latents of the training pictures have mean 0 and variance 1 in each channel."""
    items = dataset.train[:: max(1, len(dataset.train) // STANDARDIZED_ON)]
    latents = torch.cat([encode(network, dataset.gather_packed(part)).cpu() for part in torch.from_numpy(items).split(_CHUNK)])
    network.mean.copy_(latents.mean(dim=(0, 2, 3))[:, None, None])
    network.std.copy_(latents.std(dim=(0, 2, 3))[:, None, None].clamp(min=1e-4))


@torch.no_grad()
def encode(network: Autoencoder, images: Tensor) -> Tensor:
    """Return the latents of uint8 images [N, C, R, R] as packed, on the network's device."""
    return network.encode(from_uint8(images.to(next(network.parameters()).device)))


@torch.no_grad()
def rebuilt_psnr(network: LatentAutoencoder, dataset: PackedDataset) -> float:
    """Return the mean peak signal-to-noise ratio of rebuilt held-out pictures, in dB."""
    errors = []
    for part in torch.from_numpy(heldout_pictures(dataset)).split(_CHUNK):
        images = dataset.gather_packed(part)
        rebuilt = network.decode(encode(network, images)).clamp(-1, 1).cpu()
        errors.append(((rebuilt - from_uint8(images)) / 2).square().mean(dim=(1, 2, 3)))
    return float((-10 * torch.cat(errors).clamp(min=1e-10).log10()).mean())
