"""``gan-t2i bench``: how fast configs train and sample here, and where the time goes."""

import logging
from dataclasses import asdict
from pathlib import Path

import click

from gan_t2i.cli.options import OutputFile, announce, without_none
from gan_t2i.core import threads

log = logging.getLogger(__name__)


@click.command("bench")
@click.argument("configs", metavar="CONFIG...", nargs=-1, required=True)
@click.option("--data", help="Captioned pictures, as for train, in place of the configs'.")
@click.option("--set", "overrides", multiple=True, metavar="KEY.SUBKEY=VALUE", help="Change one setting of each config; repeatable.")
@click.option("--steps", type=click.IntRange(1), default=16, show_default=True, help="Training steps per repeat.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Repeats of each measurement; medians are shown.")
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps, in place of the configs'.")
@click.option("--json", "json_file", type=OutputFile(), help="Write all figures to this file.")
@click.option("--profile", "trace", type=OutputFile(), help="Write a profiler trace of a few steps to this file.")
def command(
    configs: tuple[str, ...],
    data: str | None,
    overrides: tuple[str, ...],
    steps: int,
    repeats: int,
    device: str | None,
    json_file: Path | None,
    trace: Path | None,
) -> None:
    """Measure how fast configs, YAML files or shipped recipes, train and sample.

    Reports pictures per second in training, the share of each phase of a step, floating-point operations per picture, the share that this
    is of the machine's speed in the same operations alone, seconds per picture in sampling, and peak memory. Networks are new, and nothing
    is kept of them. OMP_NUM_THREADS sets the number of threads on a CPU.
    """
    if trace is not None and len(configs) > 1:
        raise click.UsageError("--profile traces one config: name a single one")
    from gan_t2i.core import recipes
    from gan_t2i.core.config import read_yaml
    from gan_t2i.doctor.bench import run_benchmark
    from gan_t2i.doctor.plan import Request
    from gan_t2i.evaluation.results import write_json
    from gan_t2i.training.config import TrainConfig

    threads.settle()
    parsed = []
    for name in configs:  # all are checked before the first one runs, which takes minutes
        base = read_yaml(recipes.path_of(name))
        request = Request(base, overrides, {"data": without_none(source=data), **without_none(device=device)})
        parsed.append(TrainConfig.parse(request.apply(base)))
    announce(json_file, trace)
    results = []
    for name, config in zip(configs, parsed, strict=True):
        measured = run_benchmark(name, config, steps=steps, repeats=repeats, trace=trace)
        click.echo(measured.table())
        results.append(asdict(measured))
        if json_file is not None:  # after each, so that a later config's failure does not lose the earlier ones
            write_json(json_file, {"repeats": repeats, "configs": results})
    if json_file is not None:
        log.info(f"written: {json_file}")
