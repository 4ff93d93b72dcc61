"""``gan-t2i doctor``: environment checks, and the config to train a data set with here."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gan_t2i.cli.options import OutputFile, config_options, config_values, picture_options, without_none
from gan_t2i.core import threads
from gan_t2i.core.log import muted

if TYPE_CHECKING:
    from gan_t2i.doctor.recommend import Recommendation
    from gan_t2i.training.config import TrainConfig


@click.command("doctor")
@click.option("--data", help="Captioned pictures, as for train: recommend a config for them.")
@config_options
@click.option("--write", "write_file", type=OutputFile(), help="Write the recommended config here.")
@picture_options
@click.pass_context
def command(
    ctx: click.Context, /, data: str | None, config_path: Path | None, preset: str | None, write_file: Path | None, **reading: str | None
) -> None:
    """Check what works here and what is missing, with the command that installs it.

    With --data, or a --config or --preset that names its data, a few training steps are measured on some of the pictures: memory, pictures a
    second, time to finish, and a recommended config, as `train --data` takes it. The exit code is 1 only where training cannot work at all.
    """
    from gan_t2i.core.errors import UsageError

    base = config_values(config_path, preset)
    if write_file is not None:
        if data is None and base is None:
            raise UsageError("--write needs --data, --config or --preset: the recommended config depends on the data")
        if write_file.exists():
            raise UsageError(f"{write_file} exists: name a new file")
    if not _show_machine():
        ctx.exit(1)
    if data is None and base is None:
        click.echo("next: gan-t2i doctor --data FOLDER")
        return
    from gan_t2i.doctor.plan import Request
    from gan_t2i.training.config import TrainConfig

    request = Request(base, (), {"data": without_none(source=data, **reading)})
    recommendation = _show_data(TrainConfig.parse(request.apply(base or {})), str(config_path or preset) if base is not None else None)
    text = recommendation.to_yaml()
    if write_file is None:
        click.echo(text)
    else:
        from gan_t2i.cli.data import write_text

        train = f"gan-t2i train --config {shlex.quote(str(write_file))}"
        write_text(write_file, f"# {train}\n{text}")
        click.echo(f"written: {write_file}\nnext: {train}")


def _show_machine() -> bool:
    """Print the checks; returns True if training can work."""
    from gan_t2i.doctor.machine import examine, version_of

    if version_of("torch") is not None:
        with muted():  # a check says it
            threads.settle()
    checks = examine()
    for name, (state, text) in checks.items():
        click.echo(f"{state:8}{name:14}{text}")
    fatal = [name for name, (state, _) in checks.items() if state == "fatal"]
    click.echo(f"training cannot work here: {', '.join(fatal)}" if fatal else "training works here")
    return not fatal


def _show_data(config: "TrainConfig", name: str | None) -> "Recommendation":
    """Inspect the data, measure the config if it has a `name`, and the recommended one, and return that."""
    from gan_t2i.doctor.dry_run import pace_on
    from gan_t2i.doctor.plan import PICTURES
    from gan_t2i.doctor.recommend import MINUTES, Length, inspect_and_recommend, recommend

    settings = {key: value for key, value in config.data.model_dump(exclude_unset=True).items() if key != "source"}
    inspection, recommendation = inspect_and_recommend(config.data.source, settings, config.device, limit=PICTURES)
    click.echo(f"\n{inspection.summary()}")
    if recommendation.facts.shortage:
        click.echo(recommendation.facts.shortage)
    if name is not None:
        click.echo(f"\n{name}\n{pace_on(config, inspection.examples)}")
    pace = pace_on(recommendation.config(), inspection.examples)
    length = Length.fitting(MINUTES, pace.rate, sum(pace.pretraining.values()))
    recommendation = recommend(recommendation.facts, recommendation.machine, length)
    click.echo(f"\nrecommended: {recommendation.recipe.name}, {length.kimg:g} kimg, {length.why}, {pace.peak_gib:.1f} GiB at the peak\n")
    return recommendation
