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
from gan_t2i.core.distributed import own_rows
from gan_t2i.core.images import composite, from_uint8
from gan_t2i.core.phases import phase
from gan_t2i.core.runtime import autocast, autocast_off, product_dtype
from gan_t2i.data.batches.sampler import Batch
from gan_t2i.losses.adversarial import LOSSES, mismatch_weights
from gan_t2i.losses.penalties import finite_difference_penalty, gradient_penalty
from gan_t2i.models.base import Discriminator, Generator
from gan_t2i.models.captioner import Captioner
from gan_t2i.models.text_head import TextCondition
from gan_t2i.ops.augment import augment
from gan_t2i.ops.blur import blur
from gan_t2i.ops.checkpointing import enable_checkpointing, no_checkpointing
from gan_t2i.ops.resample import avg_pool_to
from gan_t2i.text.batch import TextBatch
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.noise import StepNoise, draw
from gan_t2i.training.orthogonal import orthogonalize_gradients
from gan_t2i.training.schedule import augment_at, blur_sigma, ema_decay, learning_rate_factor, reconstruction_weight
from gan_t2i.training.sync import GradientSync

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
        enable_checkpointing(G)
        enable_checkpointing(D)
    return Networks(G, D, G_ema, adam(G, config.optimizer.g_lr), adam(D, config.optimizer.d_lr))


@dataclass(frozen=True)
class MicroBatch:
    """A part of a batch: n pictures and the distinct captions that they are held against."""

    images: Tensor  # [n, C, R, R] uint8
    text: TextBatch  # the distinct captions
    places: Tensor  # [n, 1 + K], where in `text` a picture's own caption and its K negatives stand
    wrong: Tensor  # [n, K] bool, whether those are wrong of it
    weights: Tensor  # [n], of the pictures in the mismatch term
    asked: Tensor | None  # [n, L], the words of their own captions for the captioner, if there is one
    draws: StepNoise  # of n rows


@dataclass(frozen=True)
class Scores:
    """The pictures of a part, real and drawn, and what D says of them; N is n times D's heads."""

    real: Tensor  # [n, C, R, R]
    drawn: Tensor  # [n, C, R, R], with G's graph
    leaf: Tensor  # the same, where D's graph ends: its gradient is handed on to G
    real_seen: Tensor  # [n, 3, R, R], as D sees them
    drawn_seen: Tensor
    conditions: TextCondition  # the distinct captions, as D reads them
    real_logits: Tensor  # [N, 1 + K], of the own caption and the negatives
    drawn_logits: Tensor  # [N, 1 + K], or [N, 1] where nobody asks for more


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
        self.exchange = GradientSync([networks.G, networks.D], device)
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
        metrics: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        self.exchange.begin()
        for local in torch.arange(own.stop - own.start).chunk(parts):
            part = self._part(batch, local, local + own.start, encode, draws)
            for name, value in self._add_gradients(part, with_penalty).items():
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
                if network is networks.G and config.optimizer.g_orthogonal:
                    orthogonalize_gradients(network.parameters(), product_dtype(self.device, config.precision))
                optimizer.step()
                optimizer.zero_grad()
        update_ema(networks.G_ema, networks.G, ema_decay(nimg + config.batch, config.batch, config.ema))
        return dict(metrics)

    def _part(self, batch: Batch, local: Tensor, rows: Tensor, encode: Callable[[Tensor], TextBatch], draws: StepNoise) -> MicroBatch:
        """The pictures `local` [n] of this process's share, which are the `rows` [n] of the whole batch; `draws` are the whole batch's."""
        weights = mismatch_weights(batch.wrong.any(dim=1))[rows]
        # each caption once: those of the batch are random negatives too
        ids, places = torch.cat([batch.captions[rows, None], batch.negatives[rows]], dim=1).unique(return_inverse=True)
        with phase("text"):
            told, asked = encode(ids).to(self.device), self._asked(batch.captions[rows])
        images, places, wrong, weights = (x.to(self.device) for x in (batch.images[local], places, batch.wrong[rows], weights))
        return MicroBatch(images, told, places, wrong, weights, asked, draws[rows])

    def _asked(self, ids: Tensor) -> Tensor | None:
        """The words [n, L] of the captions `ids` [n], for the captioner, if there is one."""
        captioner = self.networks.captioner
        return captioner.tokens([self.captions[index] for index in ids.tolist()]).to(self.device) if captioner else None

    def _add_gradients(self, part: MicroBatch, with_penalty: bool) -> Metrics:
        """Forward and backward of one part of a batch; leaves the gradients in the networks."""
        judged = self._judge(part)
        g_loss, metrics_of_g = self._generator_loss(part, judged)
        with phase("G backward"):
            (gradient,) = torch.autograd.grad(g_loss / self.config.accumulation, judged.leaf, retain_graph=True)
            judged.drawn.backward(gradient)
        d_loss, metrics_of_d = self._discriminator_loss(part, judged, with_penalty)
        trained = [p for p in self.networks.D.parameters() if p.requires_grad]
        with phase("D backward with penalty" if with_penalty else "D backward"):
            (d_loss / self.config.accumulation).backward(inputs=trained)  # and not the pictures: a frozen trunk is not passed a second time
        return metrics_of_g | metrics_of_d

    def _judge(self, part: MicroBatch) -> Scores:
        G, D, config, draws = self.networks.G, self.networks.D, self.config, part.draws
        with autocast(self.device, config.precision), phase("G forward"):
            drawn = G(draws.z.to(self.device), part.text[part.places[:, 0]])
        with autocast(self.device, config.precision), phase("D forward"):
            leaf = drawn.detach().requires_grad_()
            real = from_uint8(part.images)
            real_seen, drawn_seen = self._seen(real, draws.real, draws), self._seen(leaf, draws.fake, draws)
            conditions = D.text_head(part.text)
            real_logits = against(D, D.trunk(real_seen), conditions, part.places)
            asked_of_drawn = part.places if config.loss.generator_match_weight else part.places[:, :1]
            drawn_logits = against(D, D.trunk(drawn_seen), conditions, asked_of_drawn)
        return Scores(real, drawn, leaf, real_seen, drawn_seen, conditions, real_logits, drawn_logits)

    def _generator_loss(self, part: MicroBatch, judged: Scores) -> tuple[Tensor, Metrics]:
        """What G is to make small, a scalar: D's doubt, and what else the config asks of its pictures."""
        config = self.config
        loss = self.loss.generator(judged.real_logits[:, 0].detach(), judged.drawn_logits[:, 0]).mean()
        if config.loss.generator_match_weight:
            loss = loss + config.loss.generator_match_weight * self._mismatch(judged.drawn_logits, part)
        caption_loss = self._caption_loss(composite(judged.leaf, part.draws.background), part.asked, part.draws)
        loss = loss + config.captioner.weight * caption_loss
        distance = (judged.leaf - judged.real).square().mean()
        if pull := reconstruction_weight(part.draws.nimg, config.loss):
            loss = loss + pull * distance
        metrics = {"Loss/G/loss": loss.detach(), "Loss/G/distance": distance.detach()}
        return loss, metrics if part.asked is None else metrics | {"Loss/G/caption": caption_loss.detach()}

    def _discriminator_loss(self, part: MicroBatch, judged: Scores, with_penalty: bool) -> tuple[Tensor, Metrics]:
        """What D is to make small, a scalar."""
        config, real, fake = self.config, judged.real_logits[:, 0], judged.drawn_logits[:, 0]
        loss = self.loss.discriminator(real, fake).mean()
        mismatch = self._mismatch(judged.real_logits, part)
        metrics = {
            "Loss/D/loss": loss.detach(),
            "Loss/D/mismatch": mismatch.detach(),
            **_scores(real=real, fake=fake, mismatched=judged.real_logits[:, 1:]),
            "Loss/signs/real_above_fake": (real - fake).detach().sign().mean(),
        }
        loss = loss + config.loss.match_weight * mismatch
        if with_penalty:
            penalty, slopes = self._penalty(judged.real_seen, judged.drawn_seen, judged.conditions[part.places[:, 0]], part.draws)
            loss, metrics = loss + penalty * config.penalty.interval, metrics | slopes
        return loss, metrics

    def _mismatch(self, logits: Tensor, part: MicroBatch) -> Tensor:
        """The mean mismatch term, a scalar, of logits [N, 1 + K]."""
        wrong, weights = (x.repeat_interleave(len(logits) // len(x), dim=0) for x in (part.wrong, part.weights))  # for each of D's heads
        return (self.loss.mismatch(logits[:, 0], logits[:, 1:], wrong) * weights).mean()

    @phase("captioner")
    def _caption_loss(self, pictures: Tensor, asked: Tensor | None, draws: StepNoise) -> Tensor:
        """The mean nats a word that drawn pictures [n, 3, R, R] leave caption_loss of the captions that they were drawn for, a scalar.

        With the noise that the captioner was taught with: without it, G finds patterns that please it and show nothing.
        """
        captioner = self.networks.captioner
        if captioner is None or asked is None:
            return torch.zeros((), device=self.device)
        noise = draws.uneven_noise(self.config.captioner.noise, captioner.side).to(self.device)
        with autocast(self.device, self.config.precision):
            return -captioner(avg_pool_to(pictures, captioner.side) + noise, asked).mean()

    def _seen(self, images: Tensor, changes: Tensor, draws: StepNoise) -> Tensor:
        """Pictures [n, C, R, R] as D sees them, [n, 3, R, R]: over a colour, blurred, changed.

        The colour of a row is the same below its real and its drawn picture, so that it tells nothing of which is which.
        """
        config, nimg = self.config, draws.nimg
        images = blur(composite(images, draws.background), blur_sigma(nimg, config.kimg, config.blur) * images.shape[3])
        return augment(images, augment_at(nimg, config.augment), changes)

    @phase("penalty")
    def _penalty(self, real: Tensor, fake: Tensor, condition: TextCondition, draws: StepNoise) -> tuple[Tensor, Metrics]:
        """gamma / 2 times the mean squared slope of D at real and at drawn pictures, in float32, on a share of them."""
        config, D = self.config.penalty, self.networks.D
        count = max(1, round(len(real) * config.fraction))
        pictures = torch.cat([real[:count], fake[:count]]).detach().float()
        twice = torch.arange(count, device=self.device).repeat(2)
        with autocast_off(self.device):
            told = condition.float()[twice]
            if config.name == "gradient":
                with no_checkpointing(D):  # the graph of a gradient holds it all anyhow
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
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the weights of `average` towards those of `network`; buffers are copied."""
    targets = [p.detach() for p in network.parameters()]
    torch._foreach_lerp_([p.detach() for p in average.parameters()], targets, 1 - decay)
    for old, new in zip(average.buffers(), network.buffers(), strict=True):
        old.copy_(new)
