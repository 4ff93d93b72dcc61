"""``gan-t2i data``: make the built-in sets, check captioned pictures, and pack them."""

import json
import shlex
from pathlib import Path
from typing import Any

import click

from gan_t2i.cli.options import OutputFile, announce, picture_options, without_none


@click.group("data")
def command() -> None:
    """Make, check and pack caption data sets."""


@command.group("make")
def make() -> None:
    """Make one of the data sets that need no download."""


@make.command("shapes")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--basic", is_flag=True, help="Six shapes on white, alone or in pairs: the set basic-shapes.")
@click.option("--count", type=click.IntRange(min=1), help="Pictures, the held-out ones included.  [default: 15000, with --basic 6000]")
@click.option("--size", type=click.IntRange(16, 1024), default=64, show_default=True, help="Side of the pictures in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same pictures.")
@click.option("--heldout", type=click.IntRange(min=0), help="Pictures of combinations that are not in training.  [default: 1 in 25]")
def make_shapes(out: Path, basic: bool, count: int | None, size: int, seed: int, heldout: int | None) -> None:
    """Draw coloured shapes with captions into the new folder OUT."""
    from gan_t2i.data.builtin import basic_shapes, shapes

    kind = basic_shapes.BASIC_SHAPES if basic else shapes.SHAPES
    shapes.make_shapes(out, kind=kind, count=count, size=size, seed=seed, heldout=heldout)
    _show_made(out, size)


@make.command("emoji")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--font", type=click.Path(path_type=Path), metavar="FILE", help="Colour emoji font.  [default: one that is installed]")
@click.option("--size", type=click.IntRange(16, 1024), default=128, show_default=True, help="Side of the pictures in pixels.")
@click.option("--background", default="white", show_default=True, help="A colour such as white or #ffeecc, or transparent.")
@click.option("--language", "languages", multiple=True, default=["en"], show_default=True, help="Code such as en or zh, or all; repeatable.")
@click.option("--flags", is_flag=True, help="Include flags of countries and regions.")
@click.option("--skin-tones", is_flag=True, help="Include every skin tone.")
def make_emoji(out: Path, font: Path | None, size: int, background: str, languages: tuple[str, ...], flags: bool, skin_tones: bool) -> None:
    """Render the emoji of a colour font, with their names as captions, into the new folder OUT."""
    from gan_t2i.data.builtin import emoji_font

    emoji_font.make_emoji(out, font=font, size=size, background=background, languages=languages, flags=flags, skin_tones=skin_tones)
    if not emoji_font.joins_sequences():
        click.echo("this Pillow has no raqm layout, so emoji of several code points were left out")
    _show_made(out, size)


@make.command("icons")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--set", "sets", multiple=True, required=True, metavar="STYLE=PATH", help="An icons.json of Iconify, or its folder; repeatable.")
@click.option("--tags", type=click.Path(path_type=Path), metavar="FOLDER", help="The package emojibase-data: labels and tags as captions.")
@click.option("--language", "languages", multiple=True, default=["en"], show_default=True, help="Code such as en or zh; repeatable.")
@click.option("--size", type=click.IntRange(16, 1024), default=128, show_default=True, help="Side of the pictures in pixels.")
@click.option("--foreground", default="black", show_default=True, metavar="COLOUR", help="Colour of icons that have none of their own.")
@click.option("--flags", is_flag=True, help="Include flags of countries and regions.")
@click.option("--skin-tones", is_flag=True, help="Include every skin tone.")
def make_icons(out: Path, sets: tuple[str, ...], size: int, **options: Any) -> None:
    """Join icon sets into the new folder OUT: the same things in several styles, with things and cells of style x thing held out."""
    from gan_t2i.core.errors import UsageError
    from gan_t2i.data.builtin import icons

    paths: dict[str, Path] = {}
    for pair in sets:
        style, _, path = pair.partition("=")
        if not style.strip() or not path or style in paths:
            raise UsageError(f"--set {pair}: must be STYLE=PATH, each style once")
        paths[style] = Path(path)
    icons.make_icons(out, paths, size=size, **options)
    _show_made(out, size)


@command.command("pack")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--resolution", type=int, default=64, show_default=True, help="Side in pixels, a power of two; train at the same.")
@click.option("--redact", is_flag=True, default=None, help="Remove e-mail and web addresses, phone numbers and handles from captions.")
@click.option("--caption-form", "forms", multiple=True, help='Further form of every caption, as "an icon of {}"; repeatable.')
@click.option("--caption-dropout", type=float, metavar="SHARE", help="Add copies of training captions without this share of their words.")
@click.option("--caption-shuffle", is_flag=True, default=None, help="Add copies of training captions with their tags in another order.")
@click.option("--recolour", type=int, metavar="N", help="Add N copies of each training picture in other colours, named in the caption.")
@picture_options
def pack(source: str, out: Path, resolution: int, forms: tuple[str, ...], **chosen: Any) -> None:
    """Decode SOURCE once, at the training resolution, into the new folder OUT.

    SOURCE is a folder of captioned pictures, a metadata file, a zip, a tar or a pattern such as 'set/{0000..0009}.tar', a parquet, CSV
    or COCO file, icons.json, hf:owner/name, or shapes, basic-shapes or emoji. Ctrl-C stops; the same command resumes.
    """
    from gan_t2i.core.files import check_new
    from gan_t2i.data import packing
    from gan_t2i.data.builtin import resolve_source
    from gan_t2i.data.settings import DataSettings

    packing.check_resolution(resolution)  # before a built-in set is made, as is the next
    check_new(out)
    settings = DataSettings.parse(without_none(caption_forms=["{}", *forms] if forms else None, **chosen))
    dataset = packing.pack(resolve_source(source, resolution, settings), out, resolution, settings)
    click.echo(f"packed into {out} at {resolution} x {resolution} pixels")
    click.echo(dataset.report)
    click.echo(f"fingerprint {dataset.fingerprint}")
    _show_captions(dataset.captions)
    click.echo(f"next: gan-t2i train --data {shlex.quote(str(out))}{' --alpha' * settings.alpha} --set resolution={resolution}")


@command.command("inspect")
@click.argument("source")
@click.option("--json", "json_file", type=OutputFile(allow_dash=True), help="Write everything here; - prints it.")
@click.option("--html", "html_file", type=OutputFile(), help="Write a page with examples here.")
@click.option("--limit", type=click.IntRange(1), help="Number of pictures to inspect, evenly spaced over the data.  [default: all]")
@picture_options
def inspect(source: str, json_file: Path | None, html_file: Path | None, limit: int | None, **chosen: str | None) -> None:
    """Inspect the pictures and captions of SOURCE before training on them.

    SOURCE is anything that can be packed, or a packed folder. The report has counts, sizes, captions, duplicates, empty and tiny pictures,
    unusable items with the reasons, personal data, and a recommended config.
    """
    from gan_t2i.data.inspect.page import page
    from gan_t2i.doctor.recommend import inspect_and_recommend
    from gan_t2i.evaluation.results import write_json

    inspection, recommendation = inspect_and_recommend(source, without_none(**chosen), limit=limit)
    preset = recommendation.recipe.name
    announce(json_file, html_file)
    values = {**inspection.to_json(), "recommended": {"preset": preset, "config": recommendation.values}}
    if json_file == Path("-"):
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        click.echo(inspection)
        _show_captions([record.captions[0] for record in inspection.examples])
        if recommendation.facts.shortage:
            click.echo(recommendation.facts.shortage)
        doctor = f"`gan-t2i doctor --data {shlex.quote(source)} --write FILE`" + " and the options given here" * any(chosen.values())
        click.echo(f"recommended: --preset {preset}, adapted to the data by {doctor}")
        if json_file is not None:
            write_json(json_file, values)
    if html_file is not None:
        write_text(html_file, page(inspection, recommendation.to_yaml()))
        click.echo(f"written: {html_file}", err=True)


def write_text(path: Path, text: str) -> None:
    """Write the text; raises `UsageError` where `path` cannot be written."""
    from gan_t2i.core.files import output_file

    with output_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _show_made(out: Path, size: int) -> None:
    """Summary of a generated data set: counts, three captions, and the next command."""
    from gan_t2i.core.words import counted

    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    heldout = sum(line.get("split") == "heldout" for line in lines)
    if any("split" in line for line in lines):
        sides = f"{len(lines) - heldout:,} for training, {heldout:,} held out"
    else:
        sides = "training holds out a share of the captions"
    click.echo(f"made {counted(len(lines), 'picture')} of {size} x {size} pixels in {out}: {sides}")
    _show_captions([line["text"][0] for line in lines])
    click.echo(f"next: gan-t2i train --data {shlex.quote(str(out))}")


def _show_captions(captions: list[str]) -> None:
    """Print a few captions from the beginning, the middle and the end."""
    from gan_t2i.core.words import shorten

    shown = min(3, len(captions))
    for index in range(shown):
        caption = captions[index * (len(captions) - 1) // max(1, shown - 1)]
        click.echo(f'  "{shorten(caption, 120)}"')
