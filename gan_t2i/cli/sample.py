"""``gan-t2i sample``: prompts to pictures."""

import json
import re
from pathlib import Path
from typing import TextIO

import click

from gan_t2i.cli.options import model_options


def parse_seeds(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """The seeds in ``3``, ``0-3`` or ``1,5,7-9``, in that order."""
    seeds: list[int] = []
    for part in value.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise click.BadParameter(f"{value!r} is not a list of seeds; write 3, 0-3 or 1,5,7-9", ctx, param)
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return seeds


@click.command("sample")
@click.argument("model", metavar="[RUN_OR_SNAPSHOT]", default="auto")
@click.option("-p", "--prompt", "prompts", multiple=True, help="Prompt; repeatable.")
@click.option("--prompts", "prompt_file", type=click.File("r", encoding="utf-8"), help="File with one prompt per line; - for standard input.")
@click.option("--seeds", callback=parse_seeds, default="0", show_default=True, help="Each prompt gets a picture per seed: 3, 0-3 or 1,5,7-9.")
@click.option(
    "--trunc", type=click.FloatRange(0, 2), default=1.0, show_default=True, help="Truncation psi; below 1: less variety, more typical pictures."
)
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), default="out", show_default=True, help="Folder for the pictures.")
@click.option("--grid", type=click.Path(path_type=Path, dir_okay=False), help="Write one sheet with captions to this file instead.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of prompt, seed and path.")
@model_options
def command(
    model: str,
    prompts: tuple[str, ...],
    prompt_file: TextIO | None,
    seeds: list[int],
    trunc: float,
    outdir: Path,
    grid: Path | None,
    as_json: bool,
    text_encoder: str | None,
    device: str,
) -> None:
    """Generate pictures from prompts, and print their paths.

    RUN_OR_SNAPSHOT is a run folder, a snapshot file, latest (the newest run in runs/) or pretrained (the small model of simple shapes that
    comes with gan_t2i). The default is the latest run, or the pretrained model where there is none.
    """
    texts = [*prompts, *read_prompts(prompt_file)]
    if not texts:
        raise click.UsageError('no prompt: give -p "..." or --prompts FILE')
    if empty := [number for number, prompt in enumerate(texts, 1) if not prompt.strip()]:
        raise click.UsageError(f"prompt {empty[0]} is empty: say what to draw")
    from gan_t2i.core.images import save_png, sheet
    from gan_t2i.sampling.draw import file_names
    from gan_t2i.sampling.pipeline import Text2Image

    pipeline = Text2Image.load(model, text_encoder=text_encoder, device=device)
    pictures = pipeline.generate(texts, seeds=seeds, truncation_psi=trunc)
    results = [{"prompt": prompt, "seed": seed} for prompt in texts for seed in seeds]
    if grid is not None:
        rows = [pictures[start : start + len(seeds)] for start in range(0, len(pictures), len(seeds))]
        save_png(sheet(rows, texts), grid)
        paths = [grid] * len(pictures)
    else:
        paths = [outdir / name for name in file_names(texts, seeds)]
        for picture, path in zip(pictures, paths, strict=True):
            save_png(picture, path)
    if as_json:
        values = [{**result, "path": str(path)} for result, path in zip(results, paths, strict=True)]
        click.echo(json.dumps(values, ensure_ascii=False, indent=2))
    else:
        click.echo(grid if grid is not None else "\n".join(map(str, paths)))


def read_prompts(file: TextIO | None) -> list[str]:
    """The lines of `file` that are not blank; none without a file."""
    if file is None:
        return []
    try:
        return [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--prompts {file.name}: it is not UTF-8 text ({error.reason} at byte {error.start})") from error
