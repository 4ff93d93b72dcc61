"""``gan-t2i export``: a model for other people, as a snapshot with its model card, as ONNX, or as a repository folder."""

from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from gan_t2i.cli.options import read_text, text_encoder_option
from gan_t2i.cli.subject import Subject

if TYPE_CHECKING:
    from gan_t2i.checkpoint import ModelCard


@click.command("export")
@click.argument("model", metavar="RUN_OR_SNAPSHOT")
@click.argument("destination", metavar="FILE|FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "form",
    type=click.Choice(["snapshot", "onnx", "web", "hub"]),
    default="snapshot",
    show_default=True,
    help="What to write; see above.",
)
@click.option("--card", type=click.File(encoding="utf-8"), help="Markdown: data, licences, figures and limits.  [default: the snapshot's own]")
@click.option("--example", default="", help="A prompt to begin with, which `gan-t2i serve` shows.")
@click.option("--data", metavar="SOURCE", help="Pictures that a snapshot outside of a run folder was trained on.")
@click.option("--licence", metavar="ID", help="Licence of the model as the hub calls it, such as mit or cc-by-4.0; for --to hub.")
@text_encoder_option
def command(
    model: str,
    destination: Path,
    form: str,
    card: TextIO | None,
    example: str,
    data: str | None,
    licence: str | None,
    text_encoder: str | None,
) -> None:
    """Write a model for other people.

    \b
    snapshot  a file with a model card, in bfloat16, which halves it
    onnx      a folder that draws without torch: text encoder, generator and tokenizer as files, a program and a README
    web       a folder for a static host: the page of `gan-t2i serve`, which draws in the browser; needs the command npm
    hub       a folder for the Hugging Face hub, which Text2Image.load takes too: README.md, config.json, model.safetensors

    The card holds the words of the training captions too, so that the model can say which words of a prompt are new to it. Mind that before
    you share the file.
    """
    from gan_t2i.checkpoint import read_info
    from gan_t2i.core.errors import UsageError
    from gan_t2i.core.files import check_folder, check_new
    from gan_t2i.runs import resolve_snapshot, run_of
    from gan_t2i.sampling import publish

    snapshot = resolve_snapshot(model)
    if form != "snapshot":
        check_new(destination)
    elif destination.is_dir():
        raise UsageError(f"{destination} is a folder; name a file")
    subject = Subject(snapshot, run_of(snapshot), data, text_encoder, "cpu")
    text = read_text(card, "--card") if card else ""
    chosen = publish.card_of(subject.dataset, text, example) if card else read_info(snapshot).card
    if form in ("onnx", "web"):
        _export_onnx(subject, chosen, destination, with_page=form == "web")
    elif chosen is None:
        raise click.MissingParameter(param_hint="'--card'", param_type="option")
    elif form == "snapshot":
        check_folder(destination)
        publish.publish(snapshot, chosen, destination)
    elif licence is None:
        raise click.MissingParameter(param_hint="'--licence'", param_type="option")
    else:
        publish.publish_repository(snapshot, chosen, licence, destination)
    files = [path for path in (destination, *destination.rglob("*")) if path.is_file()]
    click.echo(f"written: {destination} ({sum(path.stat().st_size for path in files) / 1e6:.1f} MB)")


def _export_onnx(subject: Subject, card: "ModelCard | None", folder: Path, *, with_page: bool) -> None:
    from dataclasses import replace

    from gan_t2i.runs import model_name
    from gan_t2i.sampling.onnx_export import export_onnx
    from gan_t2i.serving.web import export_web

    subject.pipeline.info = replace(subject.pipeline.info, card=card)
    (export_web if with_page else export_onnx)(subject.pipeline, folder, name=model_name(subject.snapshot))
