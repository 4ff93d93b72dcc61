"""Training of an autoencoder on the real images of a run, before the run. The result is cached for every run of the same data.

The loss is L1 plus half the L1 of the differences between neighbouring pixels: edges count, and flat colours stay flat. N batch.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gan_t2i import registry
from gan_t2i.checkpoint import load_weights, read_tensors, write_tensors
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.files import cache_dir
from gan_t2i.core.images import from_uint8
from gan_t2i.core.runtime import autocast, product_dtype, seeded_rng
from gan_t2i.data.batches.sampler import Sampler
from gan_t2i.data.packing import Indices, PackedDataset
from gan_t2i.models.autoencoders.base import Autoencoder
from gan_t2i.registry import Spec

# To be raised where the network or its training changes, so that cached ones are not taken for it.
VERSION = 1
LEAST_PICTURES = 64
LEAST_PSNR = 20.0  # dB; below it the decoder draws a blur, whatever G learns
EDGES = 0.5  # weight of the differences between neighbours
LATENT_SIZE = 1e-3  # weight of the mean square of the latents, which keeps them from growing away from the noise
ROLL = 8  # pixels by which images are rolled at random, at most
COOLDOWN = 0.4  # share of the training over which the learning rate falls to 0
CHECKED = 256  # pictures that the PSNR is measured on
SAVED_EVERY = 200  # steps from one saved position to the next
_CHUNK = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """The images to train on, and how to compute."""

    dataset: PackedDataset
    device: torch.device
    seed: int
    precision: str

    @property
    def heldout(self) -> Indices:
        """Pictures to measure on: held out, or training pictures where too few are."""
        return (self.dataset.heldout if len(self.dataset.heldout) >= 8 else self.dataset.train)[:CHECKED]


def pretrained_autoencoder(spec: Spec, pictures: Pictures, source: Path | None = None, *, pretrained: bool = True) -> Autoencoder:
    """Return the autoencoder of a run, frozen: the one in `source`, a state or snapshot, if there is one, else trained on first use.

    With `pretrained` False it is only measured, and need not be trained. Raises `GanT2IError` where there are too few pictures, or where the
    rebuilt pictures are too far from the real ones.
    """
    dataset = pictures.dataset
    network = build_autoencoder(spec, dataset, pictures.seed).to(pictures.device).to(memory_format=torch.channels_last)
    if network.is_identity:
        return network
    if len(dataset.train) < LEAST_PICTURES:
        raise GanT2IError(
            f"autoencoder {spec.name} needs at least {LEAST_PICTURES} training pictures, and there are {len(dataset.train)}: add pictures, or "
            f"train in pixels with autoencoder.name=pixels"
        )
    if _from_source(network, source) or not pretrained:
        return network.requires_grad_(False).eval()
    precision = str(product_dtype(pictures.device, pictures.precision))
    key = json.dumps([VERSION, dataset.fingerprint, spec.model_dump(mode="json"), pictures.seed, precision])
    path = cache_dir() / "autoencoders" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    config = registry.config_for("autoencoder", spec.name, spec.params)
    if not _loaded(network, path):
        log.info(f"autoencoder: training on {len(dataset.train):,} pictures (once)")
        AutoencoderTraining(network, config, pictures, path).run()
        psnr = rebuilt_psnr(network, pictures)
        write_tensors(path, network.state_dict(), {"type": "autoencoder", "psnr": psnr})
        _partial(path).unlink(missing_ok=True)
    psnr = float(read_tensors(path)[1]["psnr"])
    if psnr < LEAST_PSNR:
        raise GanT2IError(
            f"the autoencoder rebuilds held-out pictures at {psnr:.1f} dB, and {LEAST_PSNR:.0f} are needed: raise autoencoder.params.kimg or "
            f"latent_channels, lower factor, or train in pixels with autoencoder.name=pixels"
        )
    log.info(
        f"autoencoder: {spec.name}, {dataset.resolution} px in {dataset.resolution // network.factor} x {dataset.resolution // network.factor} "
        f"latents of {network.latent_channels} numbers, held-out PSNR {psnr:.1f} dB"
    )
    return network.requires_grad_(False).eval()


def build_autoencoder(spec: Spec, dataset: PackedDataset, seed: int) -> Autoencoder:
    """Build an autoencoder for the pictures of `dataset`; its weights follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Autoencoder = registry.build("autoencoder", spec.name, spec.params, resolution=dataset.resolution, channels=dataset.channels)
    return network


def _from_source(network: Autoencoder, source: Path | None) -> bool:
    """Load the autoencoder of a state or snapshot; False where it has none."""
    if source is None:
        return False
    tensors = read_tensors(source)[0]
    own = _below(tensors, "autoencoder") or {
        name.removeprefix("autoencoder."): tensor.float() for name, tensor in tensors.items() if name.startswith("autoencoder.")
    }
    if own:
        load_weights(network, own, f"{source} (autoencoder)")
    return bool(own)


def weights_hash(network: Autoencoder) -> str:
    """Return the sha256 of the weights."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _loaded(network: Autoencoder, path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        load_weights(network, read_tensors(path)[0], str(path))
    except GanT2IError as error:
        log.warning(f"the autoencoder is trained again: {error}")
        return False
    return True


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial.safetensors")


class AutoencoderTraining:
    """The training of an autoencoder with an encoder and a decoder, resumable at every saved position.

    Args:
        network: changed in place; in the end it holds the moving average of its weights.
        config: its settings.
        pictures: the data.
        path: of the finished weights; the position is saved beside it.
    """

    def __init__(self, network: Autoencoder, config: Any, pictures: Pictures, path: Path) -> None:
        self.network, self.config, self.pictures, self.position = network.requires_grad_(True), config, pictures, _partial(path)
        self.parameters = list(network.parameters())
        fused = pictures.device.type != "mps"
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate, betas=(0.9, 0.99), fused=fused)
        self.average = [p.detach().clone() for p in self.parameters]
        self.sampler = Sampler(pictures.dataset, pictures.seed, ())
        self.nimg = 0
        self.total = math.ceil(config.kimg * 1000 / config.batch) * config.batch

    def run(self) -> None:
        """Train to the end, from the saved position if there is one."""
        batch = self.config.batch
        self._resume()
        with tqdm(total=self.total, initial=self.nimg, desc="autoencoder", unit="img", unit_scale=True, disable=None) as bar:
            while self.nimg < self.total:
                loss = self._step()
                self.nimg += batch
                bar.update(batch)
                if self.nimg // batch % 50 == 0:
                    bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
                if self.nimg // batch % SAVED_EVERY == 0:
                    self._save()
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)
            standardize(self.network, self.pictures)

    def _step(self) -> Tensor:
        config, pictures, nimg = self.config, self.pictures, self.nimg
        rng = seeded_rng(pictures.seed, "autoencoder", nimg)
        images = from_uint8(self.sampler.batch(nimg, config.batch).images.to(pictures.device))
        down, right = torch.randint(-ROLL, ROLL + 1, (2,), generator=rng).tolist()
        images = images.roll((down, right), (2, 3)).contiguous(memory_format=torch.channels_last)
        with autocast(pictures.device, pictures.precision):
            latents = self.network.encode(images)
            strength = config.noise * torch.rand(len(images), 1, 1, 1, generator=rng)
            noise = (strength * torch.randn(latents.shape, generator=rng)).to(latents.device)
            rebuilt = self.network.decode(latents + noise)
        loss = rebuilding_loss(rebuilt, images) + LATENT_SIZE * latents.square().mean()
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (nimg + config.batch) / 2000, (self.total - nimg) / (COOLDOWN * self.total))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        step = nimg // config.batch + 1
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - min(0.999, (1 + step) / (10 + step)))
        return loss.detach()

    def _save(self) -> None:
        """Save the position, whole or not at all."""
        tensors = {f"network/{key}": tensor for key, tensor in self.network.state_dict().items()}
        tensors |= {f"average/{number}": tensor for number, tensor in enumerate(self.average)}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{name}": tensor for name, tensor in moments.items()}
        write_tensors(self.position, tensors, {"type": "autoencoder training", "nimg": self.nimg})

    def _resume(self) -> None:
        if not self.position.is_file():
            return
        try:
            tensors, metadata = read_tensors(self.position)
            load_weights(self.network, _below(tensors, "network"), str(self.position))
            for number, average in enumerate(self.average):
                average.copy_(tensors[f"average/{number}"])
            state: dict[int, dict[str, Tensor]] = {}
            for key, tensor in _below(tensors, "adam").items():
                index, name = key.split("/")
                parameter = self.parameters[int(index)]
                state.setdefault(int(index), {})[name] = tensor if name == "step" else torch.empty_like(parameter).copy_(tensor)
            self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
            self.nimg = int(metadata["nimg"])
            log.info(f"autoencoder: going on after {self.nimg:,} pictures")
        except (GanT2IError, KeyError, ValueError, RuntimeError) as error:
            log.warning(f"the autoencoder is trained from the start: {self.position} cannot be used ({error})")
            self.nimg = 0


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}


def rebuilding_loss(rebuilt: Tensor, images: Tensor) -> Tensor:
    """Return the mean L1 between images [N, C, R, R] and rebuilt ones, plus that of the differences between neighbouring pixels."""
    error = rebuilt - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + EDGES * edges


@torch.no_grad()
def standardize(network: Any, pictures: Pictures) -> None:
    """Set the network's mean and standard deviation of each latent channel, so that latents of the training pictures are standard."""
    items = pictures.dataset.train[:: max(1, len(pictures.dataset.train) // 4096)]
    latents = torch.cat([encode(network, pictures.dataset.gather_packed(part)).cpu() for part in torch.from_numpy(items).split(_CHUNK)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    network.decoder.mean.copy_(mean[:, None, None])
    network.decoder.std.copy_(std[:, None, None].clamp(min=1e-4))


@torch.no_grad()
def encode(network: Autoencoder, images: Tensor) -> Tensor:
    """Return the latents of uint8 images [N, C, R, R] as packed, on the network's device."""
    device = next(network.parameters()).device
    return network.encode(from_uint8(images.to(device)))


@torch.no_grad()
def rebuilt_psnr(network: Autoencoder, pictures: Pictures) -> float:
    """Return the mean peak signal-to-noise ratio of rebuilt held-out pictures, in dB."""
    errors = []
    for part in torch.from_numpy(pictures.heldout).split(_CHUNK):
        images = pictures.dataset.gather_packed(part)
        rebuilt = network.decode(encode(network, images)).clamp(-1, 1).cpu()
        errors.append(((rebuilt - from_uint8(images)) / 2).square().mean(dim=(1, 2, 3)))
    return float((-10 * torch.cat(errors).clamp(min=1e-10).log10()).mean())
