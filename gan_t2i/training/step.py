"""One step of the game: losses, penalties, gradients, Adam, and the moving average. N pictures a step, n a part of it.

Both gradients are taken at the same weights (simultaneous descent, the setting of R3GAN's analysis, arXiv 2501.05441): the generator's
pictures are drawn once and the discriminator sees them once, for its own gradient and for the generator's. Counted in forward and backward
passes that is about a quarter less than two alternating phases (not timed against them), and it makes accumulation exact.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gan_t2i import registry
from gan_t2i.distributed import own_rows
from gan_t2i.losses.adversarial import LOSSES, mismatch_weights
from gan_t2i.losses.penalties import finite_difference_penalty, gradient_penalty
from gan_t2i.models.base import Discriminator, Generator
from gan_t2i.models.captioner import Captioner
from gan_t2i.models.text_head import TextCondition
from gan_t2i.ops.augment import augment
from gan_t2i.ops.blur import blur
from gan_t2i.ops.recompute import everything_kept, recompute_blocks
from gan_t2i.ops.resample import average_to
from gan_t2i.phases import phase
from gan_t2i.pictures import from_uint8, over
from gan_t2i.runtime import autocast, full_precision
from gan_t2i.text.batch import TextBatch
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.draws import Draws, draw
from gan_t2i.training.exchange import Exchange
from gan_t2i.training.sampler import Batch
from gan_t2i.training.schedule import augment_at, blur_sigma, ema_decay, learning_rate_factor, reconstruction_weight

Metrics = dict[str, Tensor]


@dataclass
class Networks:
    """What is trained, and what trains it."""

    G: Generator
    D: Discriminator
    G_ema: Generator
    g_optimizer: torch.optim.Adam
    d_optimizer: torch.optim.Adam
    captioner: Captioner | None = None
    """Taught before the run, and never trained in it."""


def check_networks(config: TrainConfig) -> None:
    """Raise `GanT2IError` where the networks cannot be built at this resolution: on the meta device, which costs next to nothing."""
    interface = {"resolution": config.resolution, "text_width": 1, "max_tokens": 1}
    with torch.device("meta"):
        registry.build("generator", config.generator.name, config.generator.params, **interface, channels=config.data.channels)
        registry.build("discriminator", config.discriminator.name, config.discriminator.params, **interface)


def build_networks(config: TrainConfig, interface: dict[str, int], device: torch.device) -> Networks:
    """Both networks with weights drawn from the run's seed alone, their optimizers, and G's average."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        G = registry.build("generator", config.generator.name, config.generator.params, **interface, channels=config.data.channels)
        D = registry.build("discriminator", config.discriminator.name, config.discriminator.params, **interface)
    # channels_last is what CPU and GPU convolutions like best in bfloat16: two to four times NCHW's speed in resampling on a CPU
    G, D = (network.to(device, memory_format=torch.channels_last) for network in (G, D))
    betas = (config.optimizer.beta1, config.optimizer.beta2)

    def adam(network: nn.Module, rate: float) -> torch.optim.Adam:
        return torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=rate, betas=betas, fused=device.type != "mps")

    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    if config.checkpointing:
        recompute_blocks(G)
        recompute_blocks(D)
    return Networks(G, D, G_ema, adam(G, config.optimizer.g_lr), adam(D, config.optimizer.d_lr))


class TrainStep:
    """Call it with a batch to move both networks once.

    Args:
        networks: as `build_networks` made them.
        config: of the run.
        device: where the networks are.
        captions: by their ids, what the captioner is asked for.
    """

    def __init__(self, networks: Networks, config: TrainConfig, device: torch.device, captions: Sequence[str] = ()) -> None:
        self.captions = captions
        self.networks = networks
        self.config = config
        self.device = device
        self.loss = LOSSES[config.loss.name]
        self.exchange = Exchange([networks.G, networks.D], device)
        self.rate_scale = 1.0  # below 1 once the monitor has gone back

    def __call__(self, batch: Batch, encode: Callable[[Tensor], TextBatch], nimg: int) -> Metrics:
        """A batch of N captions with this process's share of its pictures, a function from ids of captions to their embeddings, and the number
        of pictures shown before.

        Returns the step's metrics as scalars on the device, means over this process's share but for the norms of gradients.
        """
        config, networks = self.config, self.networks
        own, parts = own_rows(config.batch), config.accumulation
        gammas = config.penalty.r1_gamma + config.penalty.r2_gamma
        with_penalty = gammas > 0 and (nimg // config.batch) % config.penalty.interval == 0
        draws = draw(config, networks.G.z_width, nimg)
        weights = mismatch_weights(batch.wrong.any(dim=1))
        metrics: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        self.exchange.begin()
        for part in torch.arange(own.stop - own.start).chunk(parts):
            rows = part + own.start
            # each caption once: those of the batch are random negatives too
            ids, places = torch.cat([batch.captions[rows, None], batch.negatives[rows]], dim=1).unique(return_inverse=True)
            with phase("text"):
                told = encode(ids).to(self.device)
                asked = self._asked(batch.captions[rows])
            for name, value in self._add_gradients(
                batch.images[part], told, asked, places, batch.wrong[rows], weights[rows], draws[rows], with_penalty
            ).items():
                metrics[name] = metrics[name] + value / parts
            self.exchange.end_part(parts)
        self.exchange.finish()
        factor = learning_rate_factor(nimg, config.kimg * 1000, config.optimizer)
        for name, network, optimizer, rate in (
            ("G", networks.G, networks.g_optimizer, config.optimizer.g_lr),
            ("D", networks.D, networks.d_optimizer, config.optimizer.d_lr),
        ):
            metrics[f"Gradient/{name}"] = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
            optimizer.param_groups[0]["lr"] = rate * factor * self.rate_scale
            with phase(f"{name} optimizer"):
                optimizer.step()
                optimizer.zero_grad()
        update_average(networks.G_ema, networks.G, ema_decay(nimg + config.batch, config.batch, config.ema))
        return dict(metrics)

    def _asked(self, ids: Tensor) -> Tensor | None:
        """The words [n, L] of the captions `ids` [n], for the captioner, if there is one."""
        captioner = self.networks.captioner
        return captioner.tokens([self.captions[index] for index in ids.tolist()]).to(self.device) if captioner else None

    def _add_gradients(
        self,
        images: Tensor,
        text: TextBatch,
        asked: Tensor | None,
        places: Tensor,
        wrong: Tensor,
        weights: Tensor,
        draws: Draws,
        with_penalty: bool,
    ) -> Metrics:
        """Forward and backward of one part of a batch; leaves the gradients in the networks.

        images [n, C, R, R]; their captions' words for the captioner, [n, L]; the places in `text` of their own captions and their K
        negatives, [n, 1 + K]; whether those are wrong [n, K];
        weights of the pictures in the mismatch term [n]; draws of n rows.
        """
        G, D, config = self.networks.G, self.networks.D, self.config
        places, wrong, weights, z = (x.to(self.device) for x in (places, wrong, weights, draws.z))
        own = places[:, 0]
        with autocast(self.device, config.precision), phase("G forward"):
            fake = G(z, text[own])
        with autocast(self.device, config.precision), phase("D forward"):
            fake_drawn = fake.detach().requires_grad_()  # D's graph ends here; its gradient is handed on to G below
            real_pictures = from_uint8(images.to(self.device))
            real_seen = self._seen(real_pictures, draws.real, draws)
            fake_seen = self._seen(fake_drawn, draws.fake, draws)
            conditions = D.text_head(text)
            logits = against(D, D.trunk(real_seen), conditions, places)
            real, mismatched = logits[:, 0], logits[:, 1:]
            generator_places = places if config.loss.generator_match_weight else places[:, :1]
            fake_logits = against(D, D.trunk(fake_seen), conditions, generator_places)
            fake_own, fake_mismatched = fake_logits[:, 0], fake_logits[:, 1:]
        wrong, weights = (x.repeat_interleave(len(real) // len(x), dim=0) for x in (wrong, weights))  # for each of D's heads

        g_loss = self.loss.generator(real.detach(), fake_own).mean()
        if config.loss.generator_match_weight:
            g_match_loss = (self.loss.mismatch(fake_own, fake_mismatched, wrong) * weights).mean()
            g_loss = g_loss + config.loss.generator_match_weight * g_match_loss
        untold = self._untold(over(fake_drawn, draws.background), asked, draws)
        g_loss = g_loss + config.captioner.weight * untold
        distance = (fake_drawn - real_pictures).square().mean()
        if pull := reconstruction_weight(draws.nimg, config.loss):
            g_loss = g_loss + pull * distance
        with phase("G backward"):
            (gradient,) = torch.autograd.grad(g_loss / config.accumulation, fake_drawn, retain_graph=True)
            fake.backward(gradient)

        d_loss = self.loss.discriminator(real, fake_own).mean()
        match_loss = (self.loss.mismatch(real, mismatched, wrong) * weights).mean()
        metrics = {
            "Loss/G/loss": g_loss.detach(),
            "Loss/G/distance": distance.detach(),
            "Loss/D/loss": d_loss.detach(),
            "Loss/D/mismatch": match_loss.detach(),
            **_scores(real=real, fake=fake_own, mismatched=mismatched),
            "Loss/signs/real_above_fake": (real - fake_own).detach().sign().mean(),
        }
        total = d_loss + config.loss.match_weight * match_loss
        if with_penalty:
            penalty, slopes = self._penalty(real_seen, fake_seen, conditions[own], draws)
            total = total + penalty * config.penalty.interval
            metrics |= slopes
        if asked is not None:
            metrics["Loss/G/caption"] = untold.detach()
        trained = [p for p in D.parameters() if p.requires_grad]
        with phase("D backward with penalty" if with_penalty else "D backward"):
            (total / config.accumulation).backward(inputs=trained)  # and not the pictures: a frozen trunk is not passed a second time
        return metrics

    @phase("captioner")
    def _untold(self, pictures: Tensor, asked: Tensor | None, draws: Draws) -> Tensor:
        """The mean nats a word that drawn pictures [n, 3, R, R] leave untold of the captions that they were drawn for, a scalar.

        With the noise that the captioner was taught with: without it, G finds patterns that please it and show nothing.
        """
        captioner = self.networks.captioner
        if captioner is None or asked is None:
            return torch.zeros((), device=self.device)
        noise = draws.uneven_noise(self.config.captioner.noise, captioner.side).to(self.device)
        with autocast(self.device, self.config.precision):
            return -captioner(average_to(pictures, captioner.side) + noise, asked).mean()

    def _seen(self, images: Tensor, changes: Tensor, draws: Draws) -> Tensor:
        """Pictures [n, C, R, R] as D sees them, [n, 3, R, R]: over a colour, blurred, changed.

        The colour of a row is the same below its real and its drawn picture, so that it tells nothing of which is which.
        """
        config, nimg = self.config, draws.nimg
        images = blur(over(images, draws.background), blur_sigma(nimg, config.kimg, config.blur) * images.shape[3])
        return augment(images, augment_at(nimg, config.augment), changes)

    @phase("penalty")
    def _penalty(self, real: Tensor, fake: Tensor, condition: TextCondition, draws: Draws) -> tuple[Tensor, Metrics]:
        """gamma / 2 times the mean squared slope of D at real and at drawn pictures, in float32, on a share of them."""
        config, D = self.config.penalty, self.networks.D
        count = max(1, round(len(real) * config.fraction))
        pictures = torch.cat([real[:count], fake[:count]]).detach().float()
        twice = torch.arange(count, device=self.device).repeat(2)
        with full_precision(self.device):
            told = condition.float()[twice]
            if config.name == "gradient":
                with everything_kept(D):  # the graph of a gradient holds it all anyhow
                    slopes = gradient_penalty(lambda x: D(x, told), pictures)
            else:
                noise = draws.noise(count, pictures.shape[-1]).flatten(0, 1).to(self.device)
                slopes = finite_difference_penalty(lambda x: D(x, told), pictures, noise, config.step)
        r1, r2 = slopes[:count].mean(), slopes[count:].mean()
        return (config.r1_gamma * r1 + config.r2_gamma * r2) / 2, {"Loss/r1_penalty": r1.detach(), "Loss/r2_penalty": r2.detach()}


def against(D: Discriminator, features: Tensor, conditions: TextCondition, places: Tensor) -> Tensor:
    """Logits [n, k] of n pictures' features, each held against the k of the `conditions` that its row of `places` [n, k] names; [n * H, k]
    of a D with H heads, those of a picture in a row."""
    logits = D.head(features, conditions[places.flatten()])  # [n k] or [n k, H]
    return logits.reshape(*places.shape, -1).transpose(1, 2).flatten(0, 1)


def _scores(**logits: Tensor) -> Metrics:
    """Mean logit and mean sign of each kind of pair."""
    scores = {f"Loss/scores/{name}": values.detach().mean() for name, values in logits.items()}
    return scores | {f"Loss/signs/{name}": values.detach().sign().mean() for name, values in logits.items()}


@phase("EMA")
@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the weights of `average` towards those of `network`; buffers are copied."""
    targets = [p.detach() for p in network.parameters()]
    torch._foreach_lerp_([p.detach() for p in average.parameters()], targets, 1 - decay)
    for old, new in zip(average.buffers(), network.buffers(), strict=True):
        old.copy_(new)
