"""``gan-t2i train``: config and data to a run folder."""

from pathlib import Path

import click

from gan_t2i.cli.options import given, picture_options


@click.command("train")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="YAML file; without one, the defaults.")
@click.option("--data", help="Captioned pictures: folder, file, zip, tars, hf:owner/name, or built-in set: shapes, emoji.")
@picture_options
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), default="runs", show_default=True, help="Where run folders go.")
@click.option("--set", "overrides", multiple=True, metavar="KEY.SUBKEY=VALUE", help="Change one setting; may be repeated.")
@click.option("--kimg", type=float, help="Thousands of training pictures to show.")
@click.option("--seed", type=int, help="Seed of every random draw.")
@click.option(
    "--resume",
    default="auto",
    show_default=True,
    metavar="auto|never|latest|RUN",
    help="auto: go on with the newest unfinished run of the same config.",
)
@click.option("--init", metavar="RUN", help="Begin with the weights of that run or snapshot where they fit.")
@click.option("--changed-data", is_flag=True, help="Go on even where the data set is not the one that the run began with.")
@click.option("--keep", type=int, help="Keep that many snapshots, the best and the newest.  [default: all]")
@click.option("--desc", help="Name for the run folder.  [default: the config's name]")
@click.option("--dry-run", is_flag=True, help="Report on data, networks, memory and time, and train nothing.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    config_path: Path | None,
    data: str | None,
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

    Ctrl-C saves and stops; the same command goes on, bit for bit, on a GPU
    with --set deterministic=true. On several CPUs or GPUs:
    torchrun --nproc-per-node N -m gan_t2i train ...
    """
    from gan_t2i.core.config import read_yaml, with_overrides
    from gan_t2i.training.config import TrainConfig

    values = with_overrides(read_yaml(config_path) if config_path else {}, overrides)
    group = values.setdefault("data", {})
    if isinstance(group, dict):  # where it is no group of keys, `parse` says so
        group |= given(source=data, **reading)
    values |= given(kimg=kimg, seed=seed, init=init)
    report = values.setdefault("report", {})
    if isinstance(report, dict):
        report |= given(keep=keep)
    config = TrainConfig.parse(values)
    description = desc or (config_path.stem if config_path else Path(config.data.source).name)
    from gan_t2i.core.distributed import is_first, process_group

    with process_group(config.device):
        if dry_run:
            from gan_t2i.doctor.dry_run import dry_run_report

            report = dry_run_report(config)
            if is_first():
                click.echo(report)
            return
        from gan_t2i.training.run import run_training

        folder, stopped_by = run_training(config, outdir, resume=resume, description=description, changed_data=changed_data)
    if stopped_by is not None:
        ctx.exit(128 + stopped_by)  # the shell's code for a process that a signal ended
    click.echo(f'done: {folder.snapshots()[-1]}\ntry: gan-t2i sample {folder.path} -p "..." --grid out.png')
