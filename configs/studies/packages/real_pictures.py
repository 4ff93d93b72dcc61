"""Public packages against this one on real pictures: the same data, the same minutes of training, one after the other on the same cores.

    pip install stylegan2-pytorch==1.9.0 gigagan-pytorch==0.3.0 diffusers
    python configs/studies/packages/real_pictures.py configs/emoji64.yaml --minutes 15

`--only NAME...` trains those contenders alone: several processes side by side, a core each (taskset, OMP_NUM_THREADS=1), fill a machine.

Every contender trains for the same minutes of wall clock and then draws the captions of the data; `gan-t2i evaluate pictures` and `retrieval`
score all of them alike, by EMA weights. Ours are the configs given, with kimg to fill the minutes and schedules to match. Each package has:

- stylegan2-pytorch: its networks, losses, optimizers, augmentation (a quarter of the batches, as its README advises for little data), penalty
  every fourth step, batch 16, float32. It takes no text.
- gigagan-pytorch: its own steps with the penalty every fourth time, batch 4, without text, whose encoder it would download.
- diffusers: UNet2DConditionModel in pixels with the tokens of our frozen encoder, noise prediction, AdamW, EMA, bfloat16, batch 16; pictures by
  DDIM in 20 steps without guidance, which would double them.

Pretraining before a run of ours (captioner, layout) counts into its minutes unless the cache has it: name a fresh cache by GAN_T2I_CACHE.
Each contender leaves NAME.json in --out, and a sheet of the same prompts. pytest does not collect this script.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from packages import RESOLUTION, diffusion_network, gigagan_networks, require_packages, stylegan2_networks
from PIL import Image
from torch import Tensor

from gan_t2i.core.config import read_yaml
from gan_t2i.core.images import from_uint8, to_pictures
from gan_t2i.core.runtime import autocast
from gan_t2i.doctor.dry_run import count_parameters, measure_pace
from gan_t2i.evaluation.features import FeatureSpace, open_space
from gan_t2i.evaluation.pictures import run_pictures
from gan_t2i.evaluation.retrieval import RetrievalTask, prepare_retrieval, run_retrieval
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session, prepare

BATCH = 16
GIGAGAN_BATCH = 4
PENALTY_INTERVAL = 4
DENOISING_STEPS = 20
SHEET = 48  # prompts drawn for the eye
DRAWN_AT_ONCE = 32


@dataclass
class Contender:
    """`step(number)` trains on so many pictures as it returns; `draw` takes prompts and a latent's seed for each -> [N, 3, R, R] in [-1, 1]."""

    parameters: int  # of what draws
    step: Callable[[int], int]
    draw: Callable[[Sequence[str], Sequence[int]], Tensor]
    spent: float = 0.0  # seconds of its minutes before its first step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", type=Path, nargs="+", help=f"ours, of {RESOLUTION} px and the same data")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of the names of the configs and of {', '.join(OTHERS)}")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--limit", type=int, default=600, help="pictures compared, half with half")
    parser.add_argument("--features", nargs="+", default=["random", "matcher", "efficientnet-lite2"])
    parser.add_argument("--out", type=Path, default=Path("real_pictures"))
    arguments = parser.parse_args()
    require_packages()
    arguments.out.mkdir(parents=True, exist_ok=True)
    configs = [TrainConfig.parse(read_yaml(path) | {"device": "cpu"}) for path in arguments.configs]
    # what all share is made before any clock runs
    session = prepare(configs[0], measured=True)
    task = prepare_retrieval(session.dataset, session.encoder, session.device)
    spaces = [open_space(name, session.device, lambda: task.matcher) for name in arguments.features]
    makers = {path.stem: partial(ours, config, arguments.minutes) for config, path in zip(configs, arguments.configs, strict=True)}
    makers |= {name: partial(other, session) for name, other in OTHERS.items()}
    if unknown := set(arguments.only or ()) - set(makers):
        parser.error(f"--only: no contender is called {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.minutes:g} minutes each", flush=True)
    for name in arguments.only or makers:
        contender = makers[name]()
        trained, seconds = train(contender, arguments.minutes * 60)
        row = {"name": name, "parameters": contender.parameters, "images": trained, "img/s": trained / seconds}
        row |= judged(contender, session, task, spaces, arguments.limit, arguments.out / f"{name}.png")
        (arguments.out / f"{name}.json").write_text(json.dumps(row, indent=1))
        show(row)


def train(contender: Contender, seconds: float) -> tuple[int, float]:
    """Steps until the time is up; returns the pictures shown and the seconds of the steps."""
    start, trained = time.perf_counter(), 0
    for number in itertools.count():
        used = time.perf_counter() - start
        if used + contender.spent >= seconds:
            return trained, used
        trained += contender.step(number)


def judged(
    contender: Contender, session: Session, task: RetrievalTask, spaces: list[FeatureSpace], limit: int, sheet_file: Path
) -> dict[str, Any]:
    """The figures of both suites, seconds a picture, and a sheet in `sheet_file`."""
    start = time.perf_counter()

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        asked = [(prompt, seed) for prompt in prompts for seed in seeds]
        parts = [asked[first : first + DRAWN_AT_ONCE] for first in range(0, len(asked), DRAWN_AT_ONCE)]
        return [picture for part in parts for picture in to_pictures(contender.draw(*map(list, zip(*part, strict=True))))]

    prompts = [session.dataset.captions[index] for index in session.preview_batch(SHEET).captions.tolist()]
    sheet = Image.new("RGB", (12 * RESOLUTION, SHEET // 12 * RESOLUTION))
    for number, prompt in enumerate(prompts):
        sheet.paste(generate([prompt], [number])[0], (number % 12 * RESOLUTION, number // 12 * RESOLUTION))
    each = (time.perf_counter() - start) / SHEET
    sheet.save(sheet_file)
    pictures = run_pictures(generate, session.dataset, spaces, limit=limit, seeds=2)
    retrieval = run_retrieval(generate, task)
    figures = {f"{f.network} {f.name}": (f.generated, f.real) for f in pictures.figures if f.side == "train"}
    return {"seconds a picture": each, "figures": figures, "retrieval": {name: (s.r1, s.error) for name, s in retrieval.scores.items()}}


def show(row: dict[str, Any]) -> None:
    """A contender's figures, with those of real pictures."""
    print(f"\n{row['name']}: {row['images']:,} images, {row['img/s']:.3g} img/s, {row['parameters']:,} parameters that draw, "
          f"{row['seconds a picture']:.3g} s a picture")  # fmt: skip
    for name, (drawn, real) in row["figures"].items():
        if drawn is not None and real is not None:
            print(f"  {name:32} {drawn:8.4f}   (real pictures {real:8.4f})")
    for name, (r1, error) in row["retrieval"].items():
        print(f"  R@1 {name:28} {r1:8.3f} +- {error:.3f}", flush=True)


def ours(config: TrainConfig, minutes: float) -> Contender:
    start = time.perf_counter()
    rate = measure_pace(prepare(config)).rate  # this pretrains
    first = time.perf_counter() - start
    # nobody knows yet how long the preparation without pretraining takes: it is taken off below
    start = time.perf_counter()
    prepare(config)
    spent = max(0.0, first - (time.perf_counter() - start))
    kimg = rate * (minutes * 60 - spent) / 1000
    session = prepare(lasting(config, kimg))
    networks = session.networks

    def step(number: int) -> int:
        session.run_step(number * config.batch)
        return config.batch

    @torch.no_grad()
    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        with autocast(session.device, config.precision):
            return networks.G_ema(latents(seeds, networks.G.z_width), session.encoder.encode(list(prompts)).to(session.device))

    return Contender(count_parameters(networks.G), step, draw, spent)


def lasting(config: TrainConfig, kimg: float) -> TrainConfig:
    """Return a config whose run takes `kimg`, with its schedules in kimg shortened or lengthened in proportion."""
    share = kimg / config.kimg
    reconstruction = config.terms["reconstruction"]
    terms = config.terms | {"reconstruction": reconstruction | {"kimg": reconstruction["kimg"] and reconstruction["kimg"] * share}}
    optimizer = config.optimizer.model_copy(update={"cooldown_kimg": config.optimizer.cooldown_kimg * share})
    return config.model_copy(update={"kimg": kimg, "terms": terms, "optimizer": optimizer})


def stylegan2(session: Session) -> Contender:
    gan, package = stylegan2_networks()
    real = batches(session, BATCH)

    def fake() -> Tensor:
        w = gan.S(torch.randn(BATCH, gan.G.latent_dim))
        return gan.G(w[:, None].expand(-1, gan.G.num_layers, -1), torch.rand(BATCH, RESOLUTION, RESOLUTION, 1))

    changed = {"prob": 0.25, "types": ["translation", "cutout"]}

    def step(number: int) -> int:
        slope = number % PENALTY_INTERVAL == 0
        gan.D_opt.zero_grad()
        drawn, (of_drawn, _) = gan.D_aug(fake().detach(), return_aug_images=True, input_requires_grad=slope, detach=True, **changed)
        pictures = next(real)[0].requires_grad_(slope)
        of_real, _ = gan.D_aug(pictures, **changed)
        loss = package.hinge_loss(of_drawn, of_real)
        if slope:
            loss = loss + package.gradient_penalty(pictures, of_real) + package.gradient_penalty(drawn, of_drawn)
        loss.backward()
        gan.D_opt.step()
        gan.G_opt.zero_grad()
        package.gen_hinge_loss(gan.D_aug(fake(), **changed)[0], None).backward()
        gan.G_opt.step()
        gan.EMA()
        return BATCH

    @torch.no_grad()
    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        w = gan.SE(latents(seeds, gan.G.latent_dim))
        pixels = torch.rand(len(seeds), RESOLUTION, RESOLUTION, 1, generator=torch.Generator().manual_seed(seeds[0]))
        return gan.GE(w[:, None].expand(-1, gan.G.num_layers, -1), pixels).clamp(0, 1) * 2 - 1

    return Contender(count_parameters(gan.S) + count_parameters(gan.G), step, draw)


def gigagan(session: Session) -> Contender:
    gan = gigagan_networks(average=True)
    real = (pictures for pictures, _ in batches(session, GIGAGAN_BATCH))

    def step(number: int) -> int:
        gan.train_discriminator_step(dl_iter=real, apply_gradient_penalty=number % PENALTY_INTERVAL == 0)
        gan.train_generator_step(dl_iter=real, batch_size=GIGAGAN_BATCH)
        return GIGAGAN_BATCH

    @torch.no_grad()
    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        noise = latents(seeds, gan.unwrapped_G.style_network.dim)
        return gan.generate(noise=noise, batch_size=len(seeds)).clamp(0, 1) * 2 - 1

    return Contender(count_parameters(gan.unwrapped_G), step, draw)


def diffusion(session: Session) -> Contender:
    from diffusers import DDIMScheduler, DDPMScheduler
    from diffusers.training_utils import EMAModel

    network = diffusion_network(count_parameters(session.networks.G), session.encoder.width)
    noising, denoising = DDPMScheduler(), DDIMScheduler()
    denoising.set_timesteps(DENOISING_STEPS)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4)
    average = EMAModel(network.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    real = batches(session, BATCH)

    def step(number: int) -> int:
        pictures, captions = next(real)
        text, noise = session.cache.gather(captions), torch.randn_like(pictures)
        t = torch.randint(noising.config.num_train_timesteps, (BATCH,))
        with autocast(session.device, "bf16"):
            foretold = network(noising.add_noise(pictures * 2 - 1, noise, t), t, text.tokens, encoder_attention_mask=text.mask).sample
        (foretold.float() - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        return BATCH

    @torch.no_grad()
    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        average.store(network.parameters())
        average.copy_to(network.parameters())
        text = session.encoder.encode(list(prompts))
        x = torch.stack([torch.randn(3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        for t in denoising.timesteps:
            with autocast(session.device, "bf16"):
                foretold = network(x, t, text.tokens, encoder_attention_mask=text.mask).sample
            x = denoising.step(foretold.float(), t, x).prev_sample
        average.restore(network.parameters())
        return x.clamp(-1, 1)

    return Contender(count_parameters(network), step, draw)


OTHERS: dict[str, Callable[[Session], Contender]] = {"stylegan2-pytorch": stylegan2, "gigagan-pytorch": gigagan, "diffusers": diffusion}


def batches(session: Session, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training pictures [batch, 3, R, R] in [0, 1] and the ids of their captions, for ever, in the order of ours."""
    for number in itertools.count():
        shown = session.sampler.batch(number * batch, batch)
        yield (from_uint8(shown.images) + 1) / 2, shown.captions


def latents(seeds: Sequence[int], width: int) -> Tensor:
    """[N, width], each of its own seed."""
    return torch.stack([torch.randn(width, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


if __name__ == "__main__":
    main()
