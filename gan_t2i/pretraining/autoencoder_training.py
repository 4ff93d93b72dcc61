"""The training of an autoencoder on real images: resumable, with the same bits however often it was stopped."""

import logging
import math
import signal
from pathlib import Path

import torch
from torch import Tensor

from gan_t2i.checkpoint import below, load_weights, read_tensors, write_tensors
from gan_t2i.core.distributed import world_size
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.images import from_uint8
from gan_t2i.core.log import training_bar
from gan_t2i.core.runtime import autocast, seeded_rng
from gan_t2i.core.stopping import StopRequest
from gan_t2i.data.batches.sampler import Sampler
from gan_t2i.data.packing import PackedDataset
from gan_t2i.models.autoencoders.base import LatentAutoencoder, TrainingSettings
from gan_t2i.pretraining.loop import AveragedAdam
from gan_t2i.pretraining.rebuilding import RebuildingLoss, without_overshoot

LATENT_SIZE = 1e-3  # weight of the mean square of the latents, which keeps them from outgrowing the noise
ROLL = 8  # pixels by which images are rolled at random, at most
SAVED_EVERY = 200  # steps from one saved position to the next, and from one recorded loss to the next

log = logging.getLogger(__name__)


class AutoencoderTraining:
    """Trains `network` in place; in the end it holds the moving average of its weights.

    Args:
        network: any autoencoder with parameters.
        config: its settings.
        dataset: the pictures, of which the training ones are used.
        position: file that holds the position while the training lasts; None where it is only measured.
        device, seed, precision: as for a run.
    """

    def __init__(
        self,
        network: LatentAutoencoder,
        config: TrainingSettings,
        dataset: PackedDataset,
        position: Path | None,
        *,
        device: torch.device,
        seed: int,
        precision: str,
    ) -> None:
        self.network, self.config, self.position = network, config, position
        self.device, self.seed, self.precision = device, seed, precision
        self.loss = RebuildingLoss(config.perceptual, device)
        self.adam = self._fresh_adam()
        self.sampler = Sampler(dataset, seed, ())
        self.nimg = 0
        self.losses: list[tuple[int, float]] = []
        """Images shown and the loss there, now and then."""
        self.total = math.ceil(config.kimg * 1000 / config.batch) * config.batch

    def _fresh_adam(self) -> AveragedAdam:
        return AveragedAdam({self.network: self.config.rate}, self.device)

    def run(self) -> None:
        """Train to the end, from the saved position if there is one. A request to stop saves the position, and is then obeyed."""
        batch = self.config.batch
        self._resume()
        with StopRequest(alone=world_size() == 1) as stop, training_bar("autoencoder", self.total, self.nimg) as bar:
            while self.nimg < self.total and stop.signal is None:
                loss = self.step()
                self.nimg += batch
                bar.update(batch)
                if self.nimg // batch % SAVED_EVERY == 0 or self.nimg == self.total:
                    self.losses.append((self.nimg, loss.item()))
                    bar.set_postfix_str(f"loss {self.losses[-1][1]:.3f}", refresh=False)
                    self._save()
            if self.nimg < self.total:
                self._save()
        if stop.signal is not None:
            log.info(f"autoencoder: stopped after {self.nimg:,} of {self.total:,} images; the same command goes on")
            signal.raise_signal(stop.signal)
        self.adam.finish()

    def step(self) -> Tensor:
        """Train on the batch at the present position once; returns the loss, detached."""
        config, nimg = self.config, self.nimg
        rng = seeded_rng(self.seed, "autoencoder", nimg)
        images = from_uint8(self.sampler.batch(nimg, config.batch).images.to(self.device))
        down, right = torch.randint(-ROLL, ROLL + 1, (2,), generator=rng).tolist()
        images = images.roll((down, right), (2, 3)).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.precision):
            latents = self.network.encode(images)
            strength = config.noise * torch.rand(len(images), 1, 1, 1, generator=rng)
            noise = (strength * torch.randn(latents.shape, generator=rng)).to(latents.device)
            rebuilt = self.network.decode(latents + noise)
        loss = self.loss(without_overshoot(rebuilt, images), images, rng) + LATENT_SIZE * latents.square().mean()
        self.adam.step(loss, nimg, config.batch, self.total)
        return loss.detach()

    def _save(self) -> None:
        """Save the position, whole or not at all."""
        if self.position is None:
            return
        tensors = {f"network/{key}": tensor for key, tensor in self.network.state_dict().items()}
        write_tensors(self.position, tensors | self.adam.tensors(), {"type": "autoencoder training", "nimg": self.nimg, "losses": self.losses})

    def _resume(self) -> None:
        if self.position is None or not self.position.is_file():
            return
        try:
            tensors, metadata = read_tensors(self.position)
            nimg, losses = int(metadata["nimg"]), [(int(nimg), float(loss)) for nimg, loss in metadata["losses"]]
            self.adam.load(tensors, str(self.position))
            load_weights(self.network, below(tensors, "network"), str(self.position))
        except (GanT2IError, KeyError, TypeError, ValueError) as error:
            log.warning(f"the autoencoder is trained from the start: {self.position} cannot be used ({error})")
            self.adam = self._fresh_adam()
            return
        self.nimg, self.losses = nimg, losses
        log.info(f"autoencoder: going on after {nimg:,} images")
