"""Fine-tuning of the decoder after the game, so that it cleans what G draws.

G's latents are near those of real images, and not the same: edges come out ragged. Here the decoder gets the latents that G's average draws for
the captions of real images, of several candidates the nearest, and learns to show those images. With `decoder.g_lr`, G's average learns with
it; with `decoder.adversarial`, a discriminator of patches keeps surfaces and edges sharp (as in VQGAN, Esser et al. 2021, arXiv 2012.09841).
Encoder, latents and the G that D plays against stay as they are, and a run can go on afterwards. It suits sets in which a caption settles
its image, or the nearest candidate does; elsewhere it would teach a blur.
"""

import copy
import math

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gan_t2i.core.images import from_uint8
from gan_t2i.core.runtime import autocast, seeded_rng
from gan_t2i.core.stopping import Interrupted, StopRequest
from gan_t2i.data.batches.sampler import Sampler
from gan_t2i.losses.terms.reconstruction import nearest_z
from gan_t2i.models.autoencoders.conv import ConvAutoencoder
from gan_t2i.pretraining.loop import AveragedAdam
from gan_t2i.pretraining.rebuilding import RebuildingLoss, random_square
from gan_t2i.training.patch_game import PatchGame
from gan_t2i.training.report import Report
from gan_t2i.training.session import Session

LEARNING_RATE = 1e-3
REAL_SHARE = 4  # one in so many images of a batch is decoded from its own latents, so that the decoder does not forget them


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

    def step(self, nimg: int) -> Tensor:
        """Train on one batch after `nimg` images; returns the loss, detached."""
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
        if self.game is not None:
            pair = random_square(images, shown.float().clamp(-1, 1), rng)
            self.game.learn(*pair, text.pooled)
            loss = loss + session.config.decoder.adversarial * self.game.loss(*pair, text.pooled)
        self.adam.step(loss, nimg, self.batch, self.total)
        return loss.detach()

    def finish(self) -> None:
        """Give the run the decoder and its G, with the averages of their weights."""
        self.adam.finish()
        self.network.decoder.load_state_dict(self.decoder.state_dict())
        self.session.networks.G_ema.load_state_dict(self.G.state_dict())


def finish_decoder(session: Session, report: Report, nimg: int, stop: StopRequest) -> bool:
    """Train the decoder on G's images for `decoder.kimg`, after `nimg` images of the game.

    Returns False where a request to stop interrupted it, which leaves the decoder as it was.
    """
    if not session.config.decoder.kimg:
        return True
    training, losses = DecoderTraining(session), []
    try:
        with stop.interruptible(), tqdm(total=training.total, desc="decoder", unit="img", unit_scale=True, disable=None) as bar:
            for shown in range(0, training.total, training.batch):
                losses.append(training.step(shown))
                bar.update(training.batch)
    except Interrupted:
        return False
    training.finish()
    last = losses[-max(1, len(losses) // 10) :]
    report.scalars({"Autoencoder/decoder_loss": torch.stack(last).mean().item()}, nimg)
    report.pause(nimg)
    return True
