"""``gan-t2i train``: config and data to a run folder."""

import os
import shlex
from pathlib import Path
from typing import Any

import click

from gan_t2i.cli.options import config_options, config_values, picture_options, without_none
from gan_t2i.core import threads


@click.command("train")
@click.option("--data", help="Captioned pictures: folder, file, zip, tars, hf:owner/name, or built-in set: basic-shapes, shapes, emoji.")
@click.option("--minutes", type=float, help="Fit the run into this time, at this machine's pace.  [default: 60, or the config's length]")
@config_options
@picture_options
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), default="runs", show_default=True, help="Where run folders go.")
@click.option("--set", "overrides", multiple=True, metavar="KEY.SUBKEY=VALUE", help="Change one setting; may be repeated.")
@click.option("--kimg", type=float, help="Thousands of training pictures to show, in place of --minutes.")
@click.option("--seed", type=int, help="Seed of every random number.")
@click.option(
    "--resume",
    default="auto",
    show_default=True,
    metavar="auto|never|latest|RUN",
    help="auto: go on with the newest unfinished run of the same command. RUN alone: with that run, by its own config.",
)
@click.option("--init", metavar="RUN", help="Begin with the weights of that run or snapshot, or pretrained.")
@click.option("--changed-data", is_flag=True, help="Resume even if the data set has changed.")
@click.option("--keep", type=int, help="Keep that many snapshots, the best and the newest.  [default: all]")
@click.option("--desc", help="Name for the run folder.  [default: the config's name, or the data's]")
@click.option("--dry-run", is_flag=True, help="Report on data, networks, memory and time, and train nothing.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    data: str | None,
    minutes: float | None,
    config_path: Path | None,
    preset: str | None,
    outdir: Path,
    overrides: tuple[str, ...],
    kimg: float | None,
    seed: int | None,
    resume: str,
    init: str | None,
    changed_data: bool,
    keep: int | None,
    desc: str | None,
    dry_run: bool,
    **reading: str | None,
) -> None:
    """Train a model on captioned pictures.

    With --data alone, a recipe is adapted to the pictures, to this machine and to --minutes. --preset takes a recipe as it is, --config a file
    of your own.

    Ctrl-C saves and stops; the same command goes on, bit for bit, on a GPU
    with --set deterministic=true. On several CPUs or GPUs:
    torchrun --nproc-per-node N -m gan_t2i train ...
    """
    base = config_values(config_path, preset)
    groups = {"data": without_none(source=data, **reading), "report": without_none(keep=keep)}
    options: dict[str, Any] = {**{key: group for key, group in groups.items() if group}, **without_none(kimg=kimg, seed=seed, init=init)}
    from gan_t2i.core.arguments import as_positive
    from gan_t2i.doctor.plan import Request

    request = Request(base, overrides, options, as_positive(minutes, "--minutes") if minutes is not None else None)
    from gan_t2i.api import begin, with_config_of_run

    if dry_run:
        _dry_run(with_config_of_run(request, outdir, resume))
        return

    free = threads.settle()
    description = desc or preset or (config_path.stem if config_path else None)
    folder, stopped_by = begin(request, outdir, resume=resume, description=description, changed_data=changed_data, keep_threads=free)
    if stopped_by is not None:
        ctx.exit(128 + stopped_by)  # the shell's code for a process that a signal ended
    if os.environ.get("RANK", "0") == "0":  # of torchrun; its process group has ended by now
        click.echo(f'done: {folder.snapshots()[-1]}\ntry: gan-t2i sample {shlex.quote(str(folder.path))} -p "..." --grid out.png')


def _dry_run(request: Any) -> None:
    from gan_t2i.core.distributed import is_first, process_group
    from gan_t2i.doctor.dry_run import dry_run_report
    from gan_t2i.doctor.plan import make_plan

    threads.settle()
    with process_group(request.device):
        plan = make_plan(request)
        report = dry_run_report(plan.config)
        if is_first():
            for line in (*plan.lines, report):
                click.echo(line)
