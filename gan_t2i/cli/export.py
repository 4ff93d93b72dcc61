"""``gan-t2i export``: a snapshot for other people, with its model card."""

from pathlib import Path
from typing import TextIO

import click

from gan_t2i.cli.evaluate import Subject


@click.command("export")
@click.argument("model", metavar="RUN_OR_SNAPSHOT")
@click.argument("destination", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--card", type=click.File(encoding="utf-8"), required=True, help="Markdown: data, licences, figures and limits.")
@click.option("--example", default="", help="A prompt to begin with, which `gan-t2i serve` shows.")
@click.option("--data", metavar="SOURCE", help="Pictures that a snapshot outside of a run folder was trained on.")
def command(model: str, destination: Path, card: TextIO, example: str, data: str | None) -> None:
    """Write a snapshot with a model card, in bfloat16, which halves it.

    The card holds the words of the training captions too, so that the model can say which words of a prompt are new to it. Mind that before
    you share the file.
    """
    from gan_t2i.runs import resolve_snapshot, run_of
    from gan_t2i.sampling.publish import card_of, publish

    snapshot = resolve_snapshot(model)
    subject = Subject(snapshot, run_of(snapshot), data, None, "cpu")
    publish(snapshot, card_of(subject.dataset, card.read(), example), destination)
    click.echo(f"written: {destination} ({destination.stat().st_size / 1e6:.1f} MB)")
