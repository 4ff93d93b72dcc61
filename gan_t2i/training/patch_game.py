"""The game of the decoder's fine-tuning: a patch discriminator learns to tell real images from what the decoder shows. N images.

Losses and penalties are the run's kinds: relativistic, which compares the patch at each place with the real image's patch there (Huang et al.
2025, arXiv 2501.05441), with R1 and R2.
"""

import torch
from torch import Tensor

from gan_t2i.checkpoint import below, load_optimizer, load_weights, optimizer_tensors
from gan_t2i.core.runtime import autocast, autocast_off, seeded_weights
from gan_t2i.losses.adversarial import LOSSES
from gan_t2i.losses.penalties import gradient_penalty
from gan_t2i.models.patch_discriminator import STRIDE, PatchDiscriminator
from gan_t2i.training.session import Session

LEARNING_RATE = 4e-4
GAMMA = 0.05  # of R1 and R2, for a patch
INTERVAL = 8  # steps from one penalty to the next
LOSS = LOSSES["relativistic"]


class PatchGame:
    """A patch discriminator, which learns with `learn`, and its loss for what is to deceive it, `loss`."""

    def __init__(self, session: Session) -> None:
        self.device, self.precision = session.device, session.config.precision
        with seeded_weights(session.config.seed):
            network = PatchDiscriminator(session.dataset.channels, session.cache.width)
        self.D = network.to(self.device).to(memory_format=torch.channels_last).requires_grad_(False)
        self.adam = torch.optim.Adam(self.D.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.99), fused=self.device.type != "mps")

    def tensors(self) -> dict[str, Tensor]:
        """Return D's weights and moments, by name."""
        weights = {f"D/{key}": tensor for key, tensor in self.D.state_dict().items()}
        return weights | {f"adam/{key}": tensor for key, tensor in optimizer_tensors(self.adam).items()}

    def load(self, tensors: dict[str, Tensor], where: str) -> None:
        """Load what `tensors` gave; raises `GanT2IError` where that does not fit."""
        load_weights(self.D, below(tensors, "D"), where)
        load_optimizer(self.adam, below(tensors, "adam"), where)

    def learn(self, step: int, real: Tensor, fake: Tensor, sentence: Tensor) -> Tensor:
        """Train D for one step on real and shown images [N, C, R, R] of the same captions, whose sentence vectors are [N, S].

        `step` is the number of steps so far. Returns D's loss without penalties, detached.
        """
        real, fake = real.detach(), fake.detach()
        self.D.requires_grad_(True)
        with autocast(self.device, self.precision):
            logits = self.D(torch.cat([real, fake]), sentence.repeat(2, 1)).float().chunk(2)
        loss = total = LOSS.discriminator(*logits).mean()
        if step % INTERVAL == 0:
            total = loss + INTERVAL * GAMMA / 2 * self._slope(real, fake, sentence)
        total.backward()
        self.adam.step()
        self.adam.zero_grad()
        self.D.requires_grad_(False)
        return loss.detach()

    def loss(self, real: Tensor, fake: Tensor, sentence: Tensor) -> Tensor:
        """Return the loss of the shown images, a scalar."""
        with autocast(self.device, self.precision):
            with torch.no_grad():
                wanted = self.D(real, sentence).float()
            return LOSS.generator(wanted, self.D(fake, sentence).float()).mean()

    def _slope(self, real: Tensor, fake: Tensor, sentence: Tensor) -> Tensor:
        """D's mean squared slope at half of the images, real and shown, for a patch."""
        half = (len(real) + 1) // 2
        images, twice = torch.cat([real[:half], fake[:half]]), sentence[:half].repeat(2, 1)
        with autocast_off(self.device):
            return gradient_penalty(lambda x: self.D(x, twice), images).mean() / (images.shape[-1] // STRIDE) ** 2
