"""``gan-t2i edit``: a picture changed by words."""

from pathlib import Path

import click

from gan_t2i.cli.options import PictureFile, announce, model_options


@click.command("edit")
@click.argument("picture", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("model", metavar="[RUN_OR_SNAPSHOT]", default="auto")
@click.option("-p", "--prompt", required=True, help='What the picture is to show: "a blue apple".')
@click.option("--from", "source", help='What it shows: "an apple".  [default: the prompt without its colour, or without one word]')
@click.option("--strength", type=click.FloatRange(0, 3), default=1.0, show_default=True, help="Share of the change; above 1 for more of it.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed, another change.")
@click.option("--out", type=PictureFile(), default="edited.png", show_default=True, help="File for the result: .png, .jpg or another format.")
@model_options
def command(
    picture: Path, model: str, prompt: str, source: str | None, strength: float, seed: int, out: Path, text_encoder: str | None, device: str
) -> None:
    """Change PICTURE by words, such as its colour.

    The model draws the picture before and after the change as closely as it can, and adds the difference to yours. So it keeps what the model
    could not have drawn. It works where the model knows the thing and the change; the result has the model's size.
    """
    from gan_t2i.core.images import save_picture
    from gan_t2i.sampling.edit import Change, edit
    from gan_t2i.sampling.inversion import read_picture
    from gan_t2i.sampling.pipeline import Text2Image

    pipeline = Text2Image.load(model, text_encoder=text_encoder, device=device)
    edited = edit(pipeline, read_picture(picture, pipeline), Change(prompt, source, seed, strength))
    announce(out)
    save_picture(edited, out)
    click.echo(out)
