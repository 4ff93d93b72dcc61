"""``gan-t2i project``: the words and styles with which a model draws a picture."""

import json
from pathlib import Path

import click

from gan_t2i.cli.options import PictureFile, announce, model_options


@click.command("project")
@click.argument("picture", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("model", metavar="[RUN_OR_SNAPSHOT]", default="auto")
@click.option("-p", "--prompt", help='What the picture shows: "an apple".  [default: a guess among the words that the model knows]')
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the z that it is drawn with.")
@click.option("--steps", type=click.IntRange(0), default=100, show_default=True, help="Steps of the search; more come a little nearer.")
@click.option("--out", type=PictureFile(), default="projected.png", show_default=True, help="File for the sheet: .png, .jpg or another format.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@model_options
def command(
    picture: Path, model: str, prompt: str | None, seed: int, steps: int, out: Path, as_json: bool, text_encoder: str | None, device: str
) -> None:
    """Draw PICTURE with a model: find the styles with which the words draw it as nearly as they can.

    The sheet shows the picture, what the model's autoencoder keeps of it, what the words alone draw, and what they draw with the styles found.
    The printed numbers are PSNRs against the picture. A guess of the words is mostly wrong for what the model was not trained on.
    """
    from gan_t2i.core.images import save_picture
    from gan_t2i.sampling.inversion import read_picture
    from gan_t2i.sampling.pipeline import Text2Image
    from gan_t2i.sampling.project import project

    pipeline = Text2Image.load(model, text_encoder=text_encoder, device=device)
    found = project(pipeline, read_picture(picture, pipeline), prompt, seed=seed, steps=steps)
    announce(out)
    save_picture(found.sheet(), out)
    if as_json:
        facts = {"prompt": found.prompt, "guessed": prompt is None, "seed": seed, "path": str(out), "psnr": found.psnr}
        click.echo(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    click.echo(f"words{' (a guess)' * (prompt is None)}: {found.prompt}")
    for name, psnr in found.psnr.items():
        click.echo(f"{name:11}  {psnr:5.1f} dB")
    click.echo(out)
