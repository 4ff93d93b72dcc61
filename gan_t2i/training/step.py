"""One training step: forward, losses, backward, optimizers. N images a step, n a micro-batch of them.

Both gradients are taken at the same weights (simultaneous descent, the setting of R3GAN's analysis, arXiv 2501.05441): G draws its images once,
and D scores them once for both losses. Counted in forward and backward passes that is about a quarter less than two alternating phases (not
timed against them), and it makes accumulation exact.
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from gan_t2i.core.distributed import own_rows
from gan_t2i.core.images import from_uint8
from gan_t2i.core.phases import phase
from gan_t2i.core.runtime import autocast, product_dtype
from gan_t2i.data.batches.sampler import Batch
from gan_t2i.losses.adversarial import LOSSES
from gan_t2i.losses.inputs import MicroBatch, Scores, StepNoise, negative_weights, pair_logits
from gan_t2i.losses.penalties import slope_penalty
from gan_t2i.losses.term import LossTerm
from gan_t2i.ops.augment import discriminator_view
from gan_t2i.text.batch import TextBatch
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.networks import Networks, update_ema
from gan_t2i.training.orthogonal import orthogonalize_gradients
from gan_t2i.training.schedule import ema_decay, learning_rate_factor
from gan_t2i.training.sync import GradientSync

Metrics = dict[str, Tensor]


class TrainStep:
    """Moves both networks, as `build_networks` made them, once per call; `terms` are auxiliary losses, prepared."""

    def __init__(self, networks: Networks, terms: list[LossTerm], config: TrainConfig, device: torch.device) -> None:
        self.networks, self.terms, self.config, self.device = networks, terms, config, device
        self.adversarial = LOSSES[config.loss]
        self.sync = GradientSync([networks.G, networks.D], device)
        self.rate_scale = 1.0  # below 1 after a rollback

    def __call__(self, batch: Batch, encode: Callable[[Tensor], TextBatch], nimg: int) -> Metrics:
        """Train on a batch, of whose images only this process's share is given, after `nimg` images.

        `encode` turns ids of captions into their embeddings. Returns metrics as scalars on the device, means over this process's share except
        for the norms of gradients.
        """
        config, parts = self.config, self.config.accumulation
        with_penalty = config.penalty.is_due(nimg // config.batch)
        candidates = config.terms["reconstruction"]["candidates"]
        noise = StepNoise.draw(config.seed, nimg, config.batch, self.networks.G.z_width, config.augment, candidates)
        own = own_rows(config.batch)
        metrics: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        self.sync.begin()
        for local in torch.arange(own.stop - own.start).chunk(parts):
            micro = self._micro_batch(batch, local, local + own.start, encode, noise)
            for name, value in self._forward_backward(micro, with_penalty).items():
                metrics[name] = metrics[name] + value / parts
            self.sync.end_part(parts)
        self.sync.finish()
        self._optimize(nimg, metrics)
        return dict(metrics)

    def _micro_batch(self, batch: Batch, local: Tensor, rows: Tensor, encode: Callable[[Tensor], TextBatch], noise: StepNoise) -> MicroBatch:
        """Select the images `local` [n] of this process's share, which are the `rows` [n] of the whole batch, with their captions."""
        weights = negative_weights(batch.negative_mask)[rows]
        captions = batch.captions[rows]
        # each caption once: those of the batch are random negatives too
        ids, index = torch.cat([captions[:, None], batch.negatives[rows]], dim=1).unique(return_inverse=True)
        with phase("text"):
            text = encode(ids).to(self.device)
        images, index, mask, weights = (x.to(self.device) for x in (batch.images[local], index, batch.negative_mask[rows], weights))
        return MicroBatch(images, captions, text, index, mask, weights, noise[rows])

    def _forward_backward(self, micro: MicroBatch, with_penalty: bool) -> Metrics:
        """Add the gradients of a micro-batch to those in the networks."""
        D, config = self.networks.D, self.config
        # forward
        with autocast(self.device, config.precision), phase("G forward"):
            fake = self.networks.G(self._nearest_z(micro), micro.own_text)
        with autocast(self.device, config.precision), phase("D forward"):
            scores = self._score(micro, fake.detach().requires_grad_())
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
            penalty, slopes = slope_penalty(config.penalty, D, scores.real_aug, scores.fake_aug, condition, micro.noise)
            d_loss, metrics = d_loss + penalty * config.penalty.interval, metrics | slopes
        with phase("D backward with penalty" if with_penalty else "D backward"):
            # only into D's parameters: the backward of a frozen trunk down to the images is not needed again
            (d_loss / config.accumulation).backward(inputs=[p for p in D.parameters() if p.requires_grad])
        return metrics

    @torch.no_grad()
    def _nearest_z(self, micro: MicroBatch) -> Tensor:
        """Return the candidate z [n, Z] whose image is nearest to the real one, for each of n images."""
        z = micro.noise.z.to(self.device)
        if z.shape[1] == 1:
            return z[:, 0]
        real = self._real(micro.images)
        distances = [(self.networks.G(each, micro.own_text) - real).square().mean(dim=(1, 2, 3)) for each in z.unbind(dim=1)]
        return z[torch.arange(len(z)), torch.stack(distances).argmin(dim=0)]

    def _score(self, micro: MicroBatch, fake: Tensor) -> Scores:
        """Score real and generated images [n, C, R, R], both as D sees them."""
        D, config, noise = self.networks.D, self.config, micro.noise
        real = self._real(micro.images)
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

    def _optimize(self, nimg: int, metrics: dict[str, Tensor]) -> None:
        """Step both optimizers at the scheduled rates, clear the gradients, and update G's moving average."""
        networks, config = self.networks, self.config
        factor = learning_rate_factor(nimg, config.kimg * 1000, config.optimizer)
        for name, network, optimizer, rate in (
            ("G", networks.G, networks.g_optimizer, config.optimizer.g_lr),
            ("D", networks.D, networks.d_optimizer, config.optimizer.d_lr),
        ):
            metrics[f"Gradient/{name}"] = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
            optimizer.param_groups[0]["lr"] = rate * factor * self.rate_scale
            with phase(f"{name} optimizer"):
                if network is networks.G and config.optimizer.g_orthogonal:
                    orthogonalize_gradients(network.parameters(), product_dtype(self.device, config.precision))
                optimizer.step()
                optimizer.zero_grad()
        update_ema(networks.G_ema, networks.G, ema_decay(nimg + config.batch, config.batch, config.ema))


def _score_metrics(scores: Scores) -> Metrics:
    """Return the mean logit and the mean sign of each kind of pair, and the share of real images that D puts above generated ones."""
    logits = {"real": scores.real_logits[:, 0], "fake": scores.fake_logits, "mismatched": scores.real_logits[:, 1:]}
    means = {f"Loss/scores/{name}": values.detach().mean() for name, values in logits.items()}
    signs = {f"Loss/signs/{name}": values.detach().sign().mean() for name, values in logits.items()}
    return means | signs | {"Loss/signs/real_above_fake": (logits["real"] - logits["fake"]).detach().sign().mean()}
