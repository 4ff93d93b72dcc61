"""One training step: forward, losses, backward, optimizers. N images a step, n a micro-batch of them.

Both gradients are taken at the same weights (simultaneous descent, the setting of R3GAN's analysis, arXiv 2501.05441): G draws its images once,
and D scores them once for both losses. Counted in forward and backward passes that is about a quarter less than two alternating phases (not
timed against them), and it makes accumulation exact.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_t2i.core.distributed import own_rows
from gan_t2i.core.graphs import Backend, CudaGraphs
from gan_t2i.core.images import from_uint8
from gan_t2i.core.phases import phase
from gan_t2i.core.runtime import autocast, product_dtype
from gan_t2i.data.batches.sampler import Batch
from gan_t2i.losses.adversarial import LOSSES
from gan_t2i.losses.inputs import Draws, MicroBatch, Scores, StepInputs, StepNoise, negative_weights, pair_logits
from gan_t2i.losses.penalties import slope_penalty
from gan_t2i.losses.term import LossTerm
from gan_t2i.losses.terms.reconstruction import nearest_z
from gan_t2i.ops.augment import discriminator_view
from gan_t2i.text.batch import TextBatch
from gan_t2i.training.capture import CapturedStep, CaptureError, Metrics, to_device
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.networks import Networks, update_ema
from gan_t2i.training.orthogonal import orthogonalize_gradients
from gan_t2i.training.resident import Resident
from gan_t2i.training.schedule import ema_decay, learning_rate_factor
from gan_t2i.training.sync import GradientSync

log = logging.getLogger(__name__)

OFFSETS = "penalty/offsets"
NOWHERE = Resident()


class TrainStep:
    """Moves both networks, as `build_networks` made them, once per call; `terms` are auxiliary losses, prepared.

    `inputs` makes everything that changes from step to step, on the CPU. `gradients` and `update` are tensor code alone: nothing in them looks
    at a number on the device, copies from the CPU, or has a shape that data decide, so that a GPU can replay them (`capture.py`).

    Args:
        networks: G and D with their optimizers.
        terms: auxiliary losses.
        config: of the run.
        device: where the networks are.
        resident: training data that lie there.
        text_length: largest number of tokens in a caption, to which captions are padded in a captured step.
    """

    def __init__(
        self,
        networks: Networks,
        terms: list[LossTerm],
        config: TrainConfig,
        device: torch.device,
        resident: Resident = NOWHERE,
        text_length: int = 0,
    ) -> None:
        self.networks, self.terms, self.config, self.device = networks, terms, config, device
        self.resident, self.text_length = resident, text_length
        self.adversarial = LOSSES[config.loss]
        self.sync = GradientSync([networks.G, networks.D], device)
        self.rate_scale = 1.0  # below 1 after a rollback
        self.ema_share = torch.zeros((), device=device)
        self.captured: CapturedStep | None = None
        if device.type == "cuda" and config.capture == "auto":
            self.capture_with(CudaGraphs(device))

    def capture_with(self, backend: Backend) -> None:
        """Replay steps from now on; shapes and gradients keep their places."""
        self.captured = CapturedStep(backend, exact=self.config.deterministic or self.device.type == "cpu")

    def moved(self) -> None:
        """Note that a state was loaded: the moments lie elsewhere now."""
        if self.captured is not None:
            self.captured.forget()

    @contextlib.contextmanager
    def eager(self) -> Iterator[None]:
        """Context in which no step is replayed, so that its operations can be counted and timed."""
        if self.captured is not None:
            self.captured.paused = True
        try:
            yield
        finally:
            if self.captured is not None:
                self.captured.paused = False

    def __call__(self, batch: Batch, encode: Callable[[Tensor], TextBatch], nimg: int) -> Metrics:
        """Train on a batch, of whose images only this process's share is given, after `nimg` images.

        `encode` turns ids of captions into their embeddings. Returns metrics as scalars on the device, means over this process's share except
        for the norms of gradients.
        """
        with_penalty = self.config.penalty.is_due(nimg // self.config.batch)
        parts = self.inputs(batch, encode, nimg)
        self._set_rates(nimg)
        if self.captured is not None:
            try:
                return self.captured(self, parts, with_penalty)
            except CaptureError as error:
                log.info(f"training steps run one operation at a time, as they cannot be captured: {error}")
                self.captured = None
        metrics = self.gradients(to_device(parts, self.device), with_penalty)
        self.sync.reduce()
        return metrics | self.update()

    # on the CPU

    def inputs(self, batch: Batch, encode: Callable[[Tensor], TextBatch], nimg: int) -> list[StepInputs]:
        """Make the inputs of each micro-batch of this process's share, on the CPU."""
        config = self.config
        candidates = config.terms["reconstruction"]["candidates"]
        noise = StepNoise.draw(config.seed, nimg, config.batch, self.networks.G.z_width, config.augment, candidates)
        weights, own = negative_weights(batch.negative_mask), own_rows(config.batch)
        found = []
        for local in torch.arange(own.stop - own.start).chunk(config.accumulation):
            rows = local + own.start
            captions = batch.captions[rows]
            text, index = self._captions(torch.cat([captions[:, None], batch.negatives[rows]], dim=1), encode)
            draws = Draws(config.seed, nimg, rows, captions, static=self.captured is not None)
            paired = (text, index, batch.negative_mask[rows], weights[rows])
            chosen = self._searched(noise[rows], batch.shared[rows])
            found.append(StepInputs(batch.images[local], *paired, *chosen, self._drawn(draws)))
        return found

    def _captions(self, ids: Tensor, encode: Callable[[Tensor], TextBatch]) -> tuple[TextBatch | Tensor, Tensor]:
        """Return each caption of `ids` [n, 1 + K] once, as the captions of a batch are its random negatives too, and their places [n, 1 + K].

        In a captured step they are padded to as many as there can be: own ones, hard negatives, and the caption before the first.
        """
        distinct, index = ids.unique(return_inverse=True)
        if self.captured is not None:
            hard = sum(kind != "random" for kind in self.config.terms["mismatch"]["negatives"])
            most = len(ids) * (1 + hard) + (len(ids) < self.config.batch)
            distinct = F.pad(distinct, (0, max(0, most - len(distinct))))
        if self.resident.text is not None:
            return distinct, index
        with phase("text"):
            text = encode(distinct)
        return (text if self.captured is None else text.padded(self.text_length)), index

    def _searched(self, noise: StepNoise, shared: Tensor) -> tuple[StepNoise, Tensor]:
        """Return the noise, and the rows whose z is searched: those whose caption is `shared` [n].

        In a captured step all are, and the others have one z to choose from.
        """
        if self.captured is None:
            return noise, shared.nonzero()[:, 0]
        return replace(noise, z=torch.where(shared[:, None, None], noise.z, noise.z[:, :1])), torch.arange(len(shared))

    def _drawn(self, draws: Draws) -> dict[str, Tensor]:
        """Return what the terms and the penalty ask for."""
        config, autoencoder = self.config, self.networks.autoencoder
        drawn = {name: tensor for term in self.terms for name, tensor in term.draw(draws).items()}
        if config.penalty.name == "finite_difference" and config.penalty.is_due(draws.nimg // config.batch):
            side, channels = config.resolution // autoencoder.factor, 3 if autoencoder.is_identity else autoencoder.latent_channels
            drawn[OFFSETS] = draws.normal(config.penalty.count(len(draws.rows)), (channels, side, side))
        return drawn

    def _set_rates(self, nimg: int) -> None:
        """Set the learning rates and the share of new weights in G's average, where the device reads them."""
        networks, config = self.networks, self.config
        factor = learning_rate_factor(nimg, config.kimg * 1000, config.optimizer) * self.rate_scale
        for optimizer, rate in ((networks.g_optimizer, config.optimizer.g_lr), (networks.d_optimizer, config.optimizer.d_lr)):
            group = optimizer.param_groups[0]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor
        self.ema_share.fill_(1 - ema_decay(nimg + config.batch, config.batch, config.ema))

    # on the device

    def gradients(self, parts: Sequence[StepInputs], with_penalty: bool) -> Metrics:
        """Leave the mean gradients of the micro-batches in the networks; returns metrics, means over them."""
        metrics: Metrics = {}
        self.sync.begin()
        for inputs in parts:
            for name, value in self._forward_backward(self.micro_batch(inputs), with_penalty).items():
                share = value / len(parts)
                metrics[name] = metrics[name] + share if name in metrics else share
            self.sync.end_part(len(parts))
        self.sync.end()
        return metrics

    def micro_batch(self, inputs: StepInputs) -> MicroBatch:
        """Gather what was given by its place."""
        gathered = {"images": self.resident.images_at(inputs.images), "text": self.resident.text_at(inputs.text)}
        return MicroBatch(**{**vars(inputs), **gathered})

    def _forward_backward(self, micro: MicroBatch, with_penalty: bool) -> Metrics:
        """Add the gradients of a micro-batch to those in the networks."""
        D, config = self.networks.D, self.config
        # forward
        with phase("G forward"):
            with autocast(self.device, config.precision):
                real = self._real(micro.images)
                text = micro.own_text
                z = nearest_z(self.networks.G, micro.noise.z, text, real, micro.searched)
            # of its own: older torch (before pytorch/pytorch#165068) goes on with the weights that the search cast without gradients
            with autocast(self.device, config.precision):
                fake = self.networks.G(z, text)
        with autocast(self.device, config.precision), phase("D forward"):
            scores = self._score(micro, real, fake.detach().requires_grad_())
        real_logits, fake_logits = scores.real_logits[:, 0], scores.fake_logits
        # losses
        g_loss = self.adversarial.generator(real_logits.detach(), fake_logits).mean()
        d_loss = self.adversarial.discriminator(real_logits, fake_logits).mean()
        metrics = (
            _score_metrics(scores)
            | self._latent_metrics(scores)
            | {"Loss/G/distance": scores.distance.detach(), "Loss/D/loss": d_loss.detach()}
        )
        for term in self.terms:
            if (found := term.generator_loss(micro, scores)) is not None:
                g_loss, metrics = g_loss + found[0], metrics | found[1]
        metrics["Loss/G/loss"] = g_loss.detach()
        # backward of G, through D and then through G
        with phase("G backward"):
            (gradient,) = torch.autograd.grad(g_loss / config.accumulation, scores.fake, retain_graph=True)
            fake.backward(gradient)
        # D's auxiliary losses and penalty come now, so that their activations are not held during G's backward
        for term in self.terms:
            if (found := term.discriminator_loss(micro, scores)) is not None:
                d_loss, metrics = d_loss + found[0], metrics | found[1]
        if with_penalty:
            condition = scores.conditions[micro.caption_index[:, 0]]
            offsets = micro.drawn.get(OFFSETS)
            penalty, slopes = slope_penalty(config.penalty, D, scores.real_aug, scores.fake_aug, condition, offsets)
            d_loss, metrics = d_loss + penalty * config.penalty.interval, metrics | slopes
        with phase("D backward with penalty" if with_penalty else "D backward"):
            # only into D's parameters: the gradient of the images is not needed again
            (d_loss / config.accumulation).backward(inputs=[p for p in D.parameters() if p.requires_grad])
        return metrics

    def _score(self, micro: MicroBatch, real: Tensor, fake: Tensor) -> Scores:
        """Score real and generated images [n, C, R, R], both as D sees them."""
        D, config, noise = self.networks.D, self.config, micro.noise
        background = noise.background if self.networks.autoencoder.is_identity else None
        real_aug, fake_aug = (
            discriminator_view(images, config.augment, changes, background) for images, changes in ((real, noise.real), (fake, noise.fake))
        )
        conditions = D.text_head(micro.text)
        real_logits = pair_logits(D, D.trunk(real_aug), conditions, micro.caption_index)
        fake_logits = pair_logits(D, D.trunk(fake_aug), conditions, micro.caption_index[:, :1])[:, 0]
        return Scores(real, fake, real_aug, fake_aug, conditions, real_logits, fake_logits)

    def _latent_metrics(self, scores: Scores) -> Metrics:
        """Return mean and standard deviation of generated latents; those of real ones are 0 and 1."""
        if self.networks.autoencoder.is_identity:
            return {}
        fake = scores.fake.detach()
        return {"Latents/mean": fake.mean(), "Latents/std": fake.std()}

    @torch.no_grad()
    def _real(self, images: Tensor) -> Tensor:
        """Return latents [n, K, S, S] as they are, and uint8 images [n, C, R, R] encoded: those of a stream come unencoded."""
        return self.networks.autoencoder.encode(from_uint8(images)) if images.dtype == torch.uint8 else images.float()

    def update(self) -> Metrics:
        """Step both optimizers, clear the gradients, and update G's moving average; returns the norms of the gradients."""
        networks, config, metrics = self.networks, self.config, {}
        for name, network, optimizer in (("G", networks.G, networks.g_optimizer), ("D", networks.D, networks.d_optimizer)):
            metrics[f"Gradient/{name}"] = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
            with phase(f"{name} optimizer"):
                if network is networks.G and config.optimizer.g_orthogonal:
                    orthogonalize_gradients(network.parameters(), product_dtype(self.device, config.precision))
                optimizer.step()
                optimizer.zero_grad(set_to_none=self.captured is None)
        update_ema(networks.G_ema, networks.G, self.ema_share)
        return metrics


def _score_metrics(scores: Scores) -> Metrics:
    """Return the mean logit and the mean sign of each kind of pair, and the share of real images that D puts above generated ones."""
    logits = {"real": scores.real_logits[:, 0], "fake": scores.fake_logits, "mismatched": scores.real_logits[:, 1:]}
    means = {f"Loss/scores/{name}": values.detach().mean() for name, values in logits.items()}
    signs = {f"Loss/signs/{name}": values.detach().sign().mean() for name, values in logits.items()}
    return means | signs | {"Loss/signs/real_above_fake": (logits["real"] - logits["fake"]).detach().sign().mean()}
