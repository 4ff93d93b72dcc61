"""Public packages against this one, on the same cores in one run: training steps at 64 px, and sampling.

    pip install stylegan2-pytorch==1.9.0 gigagan-pytorch==0.3.0 diffusers
    python configs/studies/packages/public_packages.py --config configs/emoji64_resnet.yaml

stylegan2-pytorch and gigagan-pytorch train on noise that lies ready in memory, without penalties, averages, augmentation, text and logging;
gan_t2i trains as it does: with all of them, on its data. A step of theirs updates D and then G once. They are measured in turns, repeat by
repeat, and medians are shown; operations are counted by torch's formulas. Their widths are chosen so that their parameters are about as many
as those of configs/shapes64.yaml and emoji64_resnet.yaml; the table shows them. A diffusion model
of about as many parameters as our generator (random weights; diffusers' UNet and DDIM in 20 steps, without guidance, which would double it)
is timed against our sampling.

pytest does not collect this script; it takes ten minutes on two cores.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from packages import RESOLUTION, diffusion_network, gigagan_networks, require_packages, stylegan2_networks
from torch import Tensor

from gan_t2i.core.config import read_yaml
from gan_t2i.doctor.bench import some_captions
from gan_t2i.doctor.dry_run import count_parameters
from gan_t2i.doctor.flops import FlopCounter
from gan_t2i.doctor.sample_speed import draw_one
from gan_t2i.doctor.train_speed import temporary_loop
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session, prepare

DENOISING_STEPS = 20


@dataclass
class Contender:
    """Something that is timed: `work` makes `pictures` pictures, or shows so many in training."""

    name: str
    work: Callable[[], object]
    pictures: int
    parameters: int
    gflop: float = 0.0
    seconds: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.pictures / statistics.median(self.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/emoji64_resnet.yaml"), help="of 64 px")
    parser.add_argument("--batch", type=int, default=16, help="of all but gigagan-pytorch")
    parser.add_argument("--gigagan-batch", type=int, default=4, help="smaller, as it takes seconds a picture on a CPU")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    require_packages()
    config = TrainConfig.parse(read_yaml(arguments.config) | {"batch": arguments.batch, "device": "cpu"})
    if config.resolution != RESOLUTION:
        sys.exit(f"Error: {arguments.config} is of {config.resolution} px; name a config of {RESOLUTION} px")
    session = prepare(config)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {arguments.repeats}")
    # sampling first: training moves the weights that are drawn with
    compare("sampling, one picture from a new prompt", [our_sampling(session), diffusion(session)], arguments.repeats)
    with temporary_loop(session) as loop:
        interval = config.penalty.interval
        networks = session.networks
        ours = Contender(
            f"gan_t2i {arguments.config.stem}",
            lambda: loop.run(interval),
            interval * config.batch,
            count_parameters(networks.G) + count_parameters(networks.D),
        )
        others = [stylegan2(arguments.batch), gigagan(arguments.gigagan_batch)]
        compare(f"training steps at {RESOLUTION} px", [ours, *others], arguments.repeats)


def compare(title: str, contenders: list[Contender], repeats: int) -> None:
    """Measure in turns and print a table; the first is what the others are held against."""
    for contender in contenders:
        with FlopCounter() as counter:  # the first call also chooses kernels
            contender.work()
        contender.gflop = counter.total / contender.pictures / 1e9
        contender.work()
    for _ in range(repeats):
        for contender in contenders:
            start = time.perf_counter()
            contender.work()
            contender.seconds.append(time.perf_counter() - start)
    ours = contenders[0]
    print(f"\n{title}\n{'':28} {'img/s':>9} {'GFLOP/img':>10} {'GFLOP/s':>8} {'parameters':>12} {'ours: times as fast':>20} {'operations':>11}")
    for one in contenders:
        print(
            f"{one.name:28} {one.rate:9.3g} {one.gflop:10.3g} {one.rate * one.gflop:8.4g} {one.parameters:12,} "
            f"{ours.rate / one.rate:20.3g} {ours.gflop / one.gflop:11.3g}",
            flush=True,
        )


def our_sampling(session: Session) -> Contender:
    pipeline = Text2Image(session.networks.G_ema, session.encoder, session.snapshot_info(0))
    prompts = itertools.cycle(some_captions(session))
    return Contender("gan_t2i", lambda: draw_one(pipeline, next(prompts)), 1, count_parameters(session.networks.G))


def diffusion(session: Session) -> Contender:
    """The UNet of about our generator's parameters, in pixels, told by the same encoder."""
    from diffusers import DDIMScheduler

    network = diffusion_network(count_parameters(session.networks.G), session.encoder.width).eval()
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(DENOISING_STEPS)
    prompts = itertools.cycle(some_captions(session))

    @torch.no_grad()
    def draw() -> Tensor:
        text = session.encoder.encode([next(prompts)])
        x = torch.randn(1, 3, RESOLUTION, RESOLUTION)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t, text.tokens).sample, t, x).prev_sample
        return x

    return Contender(f"diffusers UNet, {DENOISING_STEPS} steps", draw, 1, count_parameters(network))


def stylegan2(batch: int) -> Contender:
    """Its losses and optimizers at their defaults; no penalty."""
    gan, package = stylegan2_networks()
    real = torch.randn(batch, 3, RESOLUTION, RESOLUTION)

    def fake() -> Tensor:
        w = gan.S(torch.randn(batch, gan.G.latent_dim))
        return gan.G(w[:, None].expand(-1, gan.G.num_layers, -1), torch.rand(batch, RESOLUTION, RESOLUTION, 1))

    def step() -> None:
        gan.D_opt.zero_grad()
        package.hinge_loss(gan.D(fake().detach())[0], gan.D(real)[0]).backward()
        gan.D_opt.step()
        gan.G_opt.zero_grad()
        package.gen_hinge_loss(gan.D(fake())[0], None).backward()
        gan.G_opt.step()

    return Contender("stylegan2-pytorch 1.9.0", step, batch, sum(map(count_parameters, (gan.S, gan.G, gan.D))))


def gigagan(batch: int) -> Contender:
    """Its own steps, without text and penalty."""
    gan = gigagan_networks(average=False)
    pictures = itertools.repeat(torch.rand(batch, 3, RESOLUTION, RESOLUTION))

    def step() -> None:
        gan.train_discriminator_step(dl_iter=pictures)
        gan.train_generator_step(dl_iter=pictures, batch_size=batch)

    return Contender("gigagan-pytorch 0.3.0", step, batch, count_parameters(gan.G) + count_parameters(gan.D))


if __name__ == "__main__":
    main()
