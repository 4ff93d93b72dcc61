"""``gan-t2i doctor``: what works on this machine, and what to train a data set with here."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gan_t2i.cli.options import given, picture_options

if TYPE_CHECKING:
    from gan_t2i.doctor.recommend import Recommendation
    from gan_t2i.training.config import TrainConfig

PICTURES = 500  # that are looked at: enough for sizes and faults, in seconds


@click.command("doctor")
@click.option("--data", help="Captioned pictures, as for train: say what to train them with.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="YAML file: say what it takes here.")
@click.option("--write", "write_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the recommended config here.")
@picture_options
@click.pass_context
def command(ctx: click.Context, /, data: str | None, config_path: Path | None, write_file: Path | None, **reading: str | None) -> None:
    """Say what works here, what is missing, and the command that gets it.

    With --data, or a --config that names its data, a few training steps are measured on some of the pictures: memory, pictures a second,
    time to finish, and a recommended config. The exit code is 1 only where training cannot work at all.
    """
    from gan_t2i.core.errors import UsageError

    if write_file is not None:
        if data is None and config_path is None:
            raise UsageError("--write needs --data or --config: the recommended config follows from the data")
        if write_file.exists():
            raise UsageError(f"{write_file} exists: name a new file")
    if not _show_machine():
        ctx.exit(1)
    if data is None and config_path is None:
        click.echo("next: gan-t2i doctor --data FOLDER")
        return
    from gan_t2i.core.config import read_yaml
    from gan_t2i.training.config import TrainConfig

    values = read_yaml(config_path) if config_path else {}
    group = values.setdefault("data", {})
    if isinstance(group, dict):  # where it is no group of keys, `parse` says so
        group |= given(source=data, **reading)
    config = TrainConfig.parse(values)
    recommendation = _show_data(config, config_path)
    text = recommendation.to_yaml()
    if write_file is None:
        click.echo(text)
    else:
        from gan_t2i.cli.data import write_text

        write_text(write_file, f"# gan-t2i train --config {write_file}\n{text}")
        click.echo(f"written: {write_file}\nnext: gan-t2i train --config {write_file}")


def _show_machine() -> bool:
    """Print the checks; returns whether training can work."""
    from gan_t2i.doctor.machine import examine

    checks = examine()
    for check in checks:
        click.echo(f"{check.state:8}{check.name:14}{check.text}")
    fatal = [check.name for check in checks if check.state == "fatal"]
    click.echo(f"training cannot work here: {', '.join(fatal)}" if fatal else "training works here")
    return not fatal


def _show_data(config: "TrainConfig", config_path: Path | None) -> "Recommendation":
    """Look at the data, measure the config that was named and the recommended one, and return that."""
    from gan_t2i.core.runtime import pick_device
    from gan_t2i.doctor.dry_run import pace_on
    from gan_t2i.doctor.recommend import Machine, inspect_and_recommend

    settings: Mapping[str, Any] = {key: value for key, value in config.data.model_dump(exclude_unset=True).items() if key != "source"}
    machine = Machine.here(pick_device(config.device))
    inspection, recommendation = inspect_and_recommend(config.data.source, settings, machine, limit=PICTURES)
    click.echo(f"\n{inspection.report}")
    if config_path is not None:
        click.echo(f"\n{config_path}\n{pace_on(with_local_encoder(config, machine.has_encoder), inspection.examples)}")
    measured = pace_on(recommendation.config(), inspection.examples)
    recommendation = recommendation.with_rate(measured.rate)
    click.echo(
        f"\nrecommended, after configs/{recommendation.preset.name}.yaml: {measured.rate:.0f} img/s, {measured.peak_gib:.1f} GiB at the peak, "
        f"{recommendation.config().kimg * 1000 / measured.rate / 60:.0f} minutes for {recommendation.config().kimg:g} kimg\n"
    )
    return recommendation


def with_local_encoder(config: "TrainConfig", has_default: bool) -> "TrainConfig":
    """The config with an encoder that needs no download, where its own is the default one and not here: a step takes nearly as long."""
    from gan_t2i.registry import Spec
    from gan_t2i.text.weights import MINILM

    if has_default or config.text_encoder.params.get("model") != MINILM.id:
        return config
    return type(config).parse({**config.model_dump(), "text_encoder": Spec(name="tiny").model_dump()})
