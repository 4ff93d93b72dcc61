"""Fine-tuning of the decoder after the game, so that it cleans what G draws.

G's latents are near those of real images, and not the same: edges come out ragged. Here the decoder gets the latents that G's average draws for
the captions of real images, of several candidates the nearest, and learns to show those images. With `decoder.g_lr`, G's average learns with
it; with `decoder.adversarial`, a discriminator of patches keeps surfaces and edges sharp (as in VQGAN, Esser et al. 2021, arXiv 2012.09841).
Encoder, latents and the G that D plays against stay as they are, and a run can go on afterwards. It suits sets in which a caption settles
its image, or the nearest candidate does; elsewhere it would teach a blur.
"""

import copy
import logging
import math
from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor, nn

from gan_t2i.checkpoint import below, load_weights, read_tensors
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.images import from_uint8
from gan_t2i.core.log import training_bar
from gan_t2i.core.runtime import autocast, seeded_rng
from gan_t2i.core.stopping import StopRequest
from gan_t2i.data.batches.sampler import Sampler
from gan_t2i.losses.terms.reconstruction import nearest_z
from gan_t2i.models.autoencoders.conv import ConvAutoencoder
from gan_t2i.pretraining.loop import AveragedAdam
from gan_t2i.pretraining.rebuilding import RebuildingLoss, random_square
from gan_t2i.runs import RunFolder
from gan_t2i.training.monitor import not_finite
from gan_t2i.training.patch_game import PatchGame
from gan_t2i.training.report import Report
from gan_t2i.training.schedule import crosses
from gan_t2i.training.session import Session
from gan_t2i.training.state import DECODER, Progress, save_state

LEARNING_RATE = 1e-3
REAL_SHARE = 4  # one in so many images of a batch is decoded from its own latents, so that the decoder does not forget them

REMEDY = "lower decoder.g_lr or decoder.adversarial in a new run, which may begin with the last good weights of this one (--init RUN)"

log = logging.getLogger(__name__)


class DecoderTraining:
    """Trains a copy of the decoder of `session`'s autoencoder, or one of G's average too, in steps that follow from the run's seed."""

    def __init__(self, session: Session) -> None:
        network = session.networks.autoencoder
        assert isinstance(network, ConvAutoencoder)  # the config was checked
        self.session, self.network, self.batch = session, network, session.config.batch
        self.candidates = session.config.terms["reconstruction"]["candidates"]
        self.loss = RebuildingLoss(session.config.decoder.perceptual, session.device)
        self.decoder, self.G = copy.deepcopy(network.decoder), copy.deepcopy(session.networks.G_ema)
        rates: dict[nn.Module, float] = {self.decoder: LEARNING_RATE}
        if session.config.decoder.g_lr:
            rates[self.G] = session.config.decoder.g_lr
        self.adam = AveragedAdam(rates, session.device)
        self.game = PatchGame(session) if session.config.decoder.adversarial else None
        self.sampler = Sampler(session.dataset, session.config.seed, (), session.config.data)
        self.total = math.ceil(session.config.decoder.kimg * 1000 / self.batch) * self.batch

    def step(self, nimg: int) -> dict[str, Tensor]:
        """Train on one batch after `nimg` images; returns the losses by their tags, detached."""
        session, network, G = self.session, self.network, self.G
        batch = self.sampler.batch(nimg, self.batch)
        images = from_uint8(batch.images.to(session.device))
        rng = seeded_rng(session.config.seed, "decoder", nimg)
        with torch.no_grad(), autocast(session.device, session.config.precision):
            text = session.cache.gather(batch.captions).to(session.device)
            z = torch.randn(self.batch, self.candidates, G.z_width, generator=rng).to(session.device)
            real = network.encode(images)
            z = nearest_z(G, z, text, real, batch.shared.nonzero()[:, 0].to(session.device))
        with autocast(session.device, session.config.precision):
            latents = G(z, text)
            latents[::REAL_SHARE] = real[::REAL_SHARE]
            latents = latents * network.std + network.mean
            shown = self.decoder(latents.contiguous(memory_format=torch.channels_last))
        loss = self.loss(shown.float(), images, rng)
        metrics = {"Decoder/loss": loss.detach()}
        if self.game is not None:
            pair = random_square(images, shown.float().clamp(-1, 1), rng)
            metrics["Decoder/D/loss"] = self.game.learn(nimg // self.batch, *pair, text.pooled)
            adversarial = self.game.loss(*pair, text.pooled)
            metrics["Decoder/adversarial"] = adversarial.detach()
            loss = loss + session.config.decoder.adversarial * adversarial
        self.adam.step(loss, nimg, self.batch, self.total)
        return metrics

    def tensors(self) -> dict[str, Tensor]:
        """Return the position: weights, averages and moments, by name."""
        weights = {f"{name}/{key}": tensor for name, network in self._networks().items() for key, tensor in network.state_dict().items()}
        game = self.game.tensors() if self.game is not None else {}
        return weights | self.adam.tensors() | {f"game/{key}": tensor for key, tensor in game.items()}

    def load(self, tensors: dict[str, Tensor], where: str) -> None:
        """Go on from what `tensors` gave; raises `GanT2IError` where that does not fit."""
        for name, network in self._networks().items():
            load_weights(network, below(tensors, name), where)
        self.adam.load(tensors, where)
        if self.game is not None:
            self.game.load(below(tensors, "game"), where)

    def is_finite(self) -> bool:
        """Return True if all averages of weights, which become the result, are finite."""
        return all(bool(average.isfinite().all()) for average in self.adam.average)

    def _networks(self) -> dict[str, nn.Module]:
        return {"decoder": self.decoder, "G": self.G}

    def finish(self) -> None:
        """Give the run the decoder and its G, with the averages of their weights."""
        self.adam.finish()
        self.network.decoder.load_state_dict(self.decoder.state_dict())
        self.session.networks.G_ema.load_state_dict(self.G.state_dict())


def finish_decoder(session: Session, folder: RunFolder, report: Report, progress: Progress, stop: StopRequest) -> Progress:
    """Train the decoder on G's images for `decoder.kimg`, after the game, from where `progress` stands; returns where it stands then.

    A request to stop ends it after its step, with its position in the run's state.
    """
    if not session.config.decoder.kimg:
        return replace(progress, decoder_finished=True)
    training, nimg = _beginning(session, folder, report, progress)
    batch, settings, losses = training.batch, session.config.report, defaultdict[str, list[Tensor]](list)
    report.bar.close()  # its lines would mix with those of the next one
    with training_bar("decoder", training.total, nimg) as bar:
        while nimg < training.total and stop.signal is None:
            for tag, loss in training.step(nimg).items():
                losses[tag].append(loss)
            nimg += batch
            bar.update(batch)
            is_saved = crosses(nimg, batch, settings.snapshot_kimg) or stop.signal is not None
            if is_saved or crosses(nimg, batch, settings.stats_kimg) or nimg >= training.total:
                means = {tag: torch.stack(values).mean().item() for tag, values in losses.items()}
                if not_finite(means) or not training.is_finite():
                    raise GanT2IError(f"the decoder's fine-tuning diverged within {nimg:,} images: {REMEDY}")
                report.scalars(means, progress.nimg + nimg)
                losses.clear()
            if is_saved:
                position = replace(progress, decoder_nimg=nimg)
                save_state(folder.state, session.networks, position, session.fingerprints, training.tensors())
    if finished := nimg >= training.total:
        training.finish()
    return replace(progress, decoder_nimg=nimg, decoder_finished=finished)


def _beginning(session: Session, folder: RunFolder, report: Report, progress: Progress) -> tuple[DecoderTraining, int]:
    """Return the training as the run's state has it, and the images that it has shown."""
    training = DecoderTraining(session)
    if not progress.decoder_nimg:
        return training, 0
    try:
        if progress.decoder_nimg % training.batch or progress.decoder_nimg > training.total:
            raise GanT2IError(f"it holds a position after {progress.decoder_nimg:,} images of {training.total:,}")
        training.load(below(read_tensors(folder.state)[0], DECODER), str(folder.state))
    except GanT2IError as error:
        message = f"the decoder learns from the start, as {folder.state} cannot be used: {error}"
        log.warning(message)
        report.rewind(progress.nimg, message)
        return DecoderTraining(session), 0
    log.info(f"decoder: going on after {progress.decoder_nimg:,} images")
    return training, progress.decoder_nimg
