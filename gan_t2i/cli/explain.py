"""``gan-t2i explain``: which word of a prompt moves which part of its picture."""

import json
from pathlib import Path

import click

from gan_t2i.cli.options import PictureFile, announce, model_options


@click.command("explain")
@click.argument("model", metavar="[RUN_OR_SNAPSHOT]", default="auto")
@click.option("-p", "--prompt", required=True, help="Prompt of at least two words.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the picture.")
@click.option("--trunc", type=click.FloatRange(0, 2), default=1.0, show_default=True, help="Truncation psi, as for sample.")
@click.option("--out", type=PictureFile(), default="explain.png", show_default=True, help="File for the sheet: .png, .jpg or another format.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@model_options
def command(model: str, prompt: str, seed: int, trunc: float, out: Path, as_json: bool, text_encoder: str | None, device: str) -> None:
    """Draw PROMPT, and again without each of its words.

    For each word, the sheet shows the picture, the picture without the word, where the two differ, and where the generator's attention to the
    word is. The printed shares are means over the picture. A word may get attention and change nothing: the difference is what it does.
    """
    from gan_t2i.core.images import save_picture, sheet
    from gan_t2i.core.words import shorten
    from gan_t2i.sampling.explain import explain
    from gan_t2i.sampling.pipeline import Text2Image

    found = explain(Text2Image.load(model, text_encoder=text_encoder, device=device), prompt, seed=seed, truncation_psi=trunc)
    announce(out)
    save_picture(sheet(*found.rows()), out)
    shares = [{"word": word.word, "change": word.change.mean().item(), "attention": word.attention.mean().item()} for word in found.words]
    if as_json:
        click.echo(json.dumps({"prompt": prompt, "seed": seed, "path": str(out), "words": shares}, ensure_ascii=False, indent=2))
        return
    words = [shorten(word.word, 40) for word in found.words]
    width = max(len("word"), *map(len, words))
    click.echo(f"{'word':{width}}  change  attention")
    for word, share in zip(words, shares, strict=True):
        click.echo(f"{word:{width}}  {share['change']:6.1%}  {share['attention']:9.1%}")
    click.echo(out)
