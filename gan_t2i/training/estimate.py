"""``train --dry-run``: what would be trained, on what, in which memory and time. Nothing is written to a run folder."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gan_t2i.arithmetic import FlopCounter, convolution_rate
from gan_t2i.distributed import world_size
from gan_t2i.pictures import from_uint8
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.report import peak_memory_gib
from gan_t2i.training.session import Session, prepare

# About how many steps are timed, after as many that are not: kernels are chosen and memory is taken in the first.
TIMED_STEPS = 8


def dry_run_report(config: TrainConfig, notify: Callable[[str], None]) -> str:
    """Both layer tables, and the memory and time of a run, measured on a few steps of networks that are thrown away."""
    session = prepare(config, notify)
    batch = session.sampler.batch(0, 2)
    images, text = batch.images, session.cache.gather(batch.captions).to(session.device)
    networks = session.networks
    z = torch.randn(2, networks.G.z_width, device=session.device)
    with torch.no_grad():
        generator_rows = layer_table(networks.G, lambda: networks.G.eval()(z, text))
        networks.G.train()
        discriminator_rows = layer_table(networks.D, lambda: networks.D(from_uint8(images).to(session.device), networks.D.text_head(text)))
    return "\n".join(
        [
            f"generator {config.generator.name}: {count_parameters(networks.G):,} parameters",
            *generator_rows,
            f"discriminator {config.discriminator.name}: {count_parameters(networks.D):,} parameters",
            *discriminator_rows,
            measure(session),
            "dry run: nothing was trained or written to a run folder",
        ]
    )


def count_parameters(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def layer_table(network: nn.Module, forward: Callable[[], object]) -> list[str]:
    """A line for each part that `forward` passes through, two levels deep: name, class, parameters, shape of the output."""
    shapes: dict[str, str] = {}
    hooks = []
    parts = [(name, part) for name, part in network.named_modules() if name and name.count(".") < 2]
    for name, part in parts:

        def note(part: nn.Module, inputs: object, output: object, name: str = name) -> None:
            shapes[name] = _shape(output)

        hooks.append(part.register_forward_hook(note))
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return [
        f"  {name:34} {type(part).__name__:20} {sum(p.numel() for p in part.parameters()):>11,}  {shapes.get(name, '')}" for name, part in parts
    ]


def _shape(output: object) -> str:
    """Shapes without the batch."""
    if isinstance(output, Tensor):
        return "x".join(map(str, output.shape[1:])) or "1"
    if isinstance(output, tuple):
        return ", ".join(map(_shape, output))
    return ", ".join(_shape(value) for value in vars(output).values() if isinstance(value, Tensor))


def measure(session: Session) -> str:
    """The memory and the time of the whole run, and how near it comes to the machine's limit, from a few real steps."""
    config = session.config
    interval = config.penalty.interval
    with FlopCounter() as counter:
        for number in range(interval):  # one of them has the penalty
            session.run_step(number * config.batch)
    gflop = counter.total * world_size() / (interval * config.batch) / 1e9
    steps = interval * max(1, TIMED_STEPS // interval)
    start = time.perf_counter()
    for number in range(steps):
        metrics = session.run_step(number * config.batch)
    [value.item() for value in metrics.values()]  # waits for the device
    rate = steps * config.batch / (time.perf_counter() - start)
    limit = convolution_rate(session.device, config.precision) * world_size()
    many = f"{world_size()} processes, each " if world_size() > 1 else ""
    return (
        f"estimate on {many}{session.device}, from {steps} steps of {config.batch} pictures: {rate:.0f} img/s, "
        f"{config.kimg * 1000 / rate / 60:.0f} minutes for {config.kimg:g} kimg, {peak_memory_gib(session.device):.1f} GiB at the peak\n"
        f"arithmetic: {gflop:.2f} GFLOP a picture, {rate * gflop:.0f} GFLOP/s, "
        f"{rate * gflop / limit:.0%} of this machine's {limit:.0f} GFLOP/s in 3x3 convolutions of 128 channels at the same precision"
    )
