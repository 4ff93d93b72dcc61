"""``gan-t2i sample``: prompts to pictures."""

import contextlib
import json
import logging
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

import click

from gan_t2i.cli.options import PROMPT_FILE, InSections, SheetFile, model_options
from gan_t2i.core.log import PACKAGE

if TYPE_CHECKING:
    from gan_t2i.core.stopping import StopRequest
    from gan_t2i.sampling.pipeline import Text2Image
    from gan_t2i.sampling.sheets import Row

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST = 1_000_000
"""Largest number of pictures of one call; more are a slip."""
SHOWN_AFTER = 1.0
"""Seconds until progress shows; most calls are done by then."""


def parse_seeds(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """The seeds in ``3``, ``0-3`` or ``1,5,7-9``, in that order, each once."""
    ranges: list[range] = []
    for part in value.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise click.BadParameter(f"{value!r} is not a list of seeds; write 3, 0-3 or 1,5,7-9, with numbers of up to 18 digits", ctx, param)
        ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    if sum(each.stop - each.start for each in ranges) > MOST:
        raise click.BadParameter(f"{value!r} has more than {MOST:,} seeds; ask for fewer at a time", ctx, param)
    return list(dict.fromkeys(chain(*ranges)))


@click.command(
    "sample",
    cls=InSections,
    sections={"prompts": "What to draw", "interpolate": "Between and around (to --grid)", "outdir": "Files", "text_encoder": "Model"},
)
@click.argument("model", metavar="[RUN_OR_SNAPSHOT]", default="auto")
@click.option("-p", "--prompt", "prompts", multiple=True, help="Prompt; repeatable.")
@click.option("--prompts", "prompt_file", type=PROMPT_FILE, help="File with one prompt per line; - for standard input.")
@click.option("--seeds", callback=parse_seeds, default="0", show_default=True, help="Each prompt gets a picture per seed: 3, 0-3 or 1,5,7-9.")
@click.option(
    "--trunc", type=click.FloatRange(0, 2), default=1.0, show_default=True, help="Truncation psi; below 1: less variety, more typical pictures."
)
@click.option("--interpolate", nargs=2, metavar="A B", help="Go from prompt A to prompt B; to a .gif or .webp as an animation, else a strip.")
@click.option("--frames", type=click.IntRange(2, 256), default=16, show_default=True, help="Pictures from A to B.")
@click.option("--mix", nargs=2, metavar="A B", help="Draw the shapes of prompt A in the colours of prompt B, and the reverse.")
@click.option("--variations", type=click.IntRange(1, 256), metavar="N", help="Draw N variations of the first seed, in a strip.")
@click.option("--strength", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Way from the seed to another, for variations.")
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), default="out", show_default=True, help="Folder for the pictures.")
@click.option("--overwrite", is_flag=True, help="Draw every picture again, and replace the files that have their names.")
@click.option("--grid", type=SheetFile(), help="Write one sheet with captions to this file instead: .png, .jpg or another, or an .html page.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of prompt, seed and path.")
@model_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    prompts: tuple[str, ...],
    prompt_file: TextIO | None,
    seeds: list[int],
    trunc: float,
    outdir: Path,
    overwrite: bool,
    grid: Path | None,
    interpolate: tuple[str, str] | None,
    frames: int,
    mix: tuple[str, str] | None,
    variations: int | None,
    strength: float,
    as_json: bool,
    text_encoder: str | None,
    device: str,
) -> None:
    """Generate pictures from prompts, and print their paths.

    RUN_OR_SNAPSHOT is a run folder, a snapshot file, latest (the newest run in runs/), or pretrained: icons64 (emoji in five styles) or
    pretrained:shapes64 (simple shapes), which come with gan_t2i. The default is the latest run, or icons64 where there is none.

    Each picture is written as it is drawn. Ctrl-C stops; the same command goes on with what is missing. A file that holds anything else is
    not replaced without --overwrite: the new one gets a number.
    """
    texts = [*prompts, *read_prompts(prompt_file)]
    exploration = _exploration(texts, interpolate, frames, mix, variations, strength)
    if exploration is not None:
        if grid is None:
            raise click.UsageError("--grid FILE is missing: the file for the strip, or for an animation a .gif or .webp")
        from gan_t2i.sampling.pipeline import Text2Image

        _write_rows(exploration(Text2Image.load(model, text_encoder=text_encoder, device=device), seeds, trunc), grid)
        return
    if not texts:
        raise click.UsageError('no prompt: give -p "..." or --prompts FILE')
    total = len(texts) * len(seeds)
    if total > MOST:
        raise click.UsageError(f"{total:,} pictures are more than {MOST:,}: ask for fewer at a time")
    from gan_t2i.core.arguments import as_number, as_prompts
    from gan_t2i.core.stopping import StopRequest
    from gan_t2i.sampling.pipeline import Text2Image
    from gan_t2i.sampling.save import save_all
    from gan_t2i.sampling.sheets import Row, check_sheet, save_sheet

    as_prompts(texts)  # before the model is loaded
    as_number(trunc, "--trunc")
    pipeline = Text2Image.load(model, text_encoder=text_encoder, device=device)
    done = drawn = 0
    with StopRequest() as stop, _results(as_json) as show:
        if grid is None:
            for saved in _watched(save_all(pipeline, texts, seeds, trunc, outdir, overwrite=overwrite), total, stop):
                show(saved.prompt, saved.seed, saved.path)
                done, drawn = done + 1, drawn + saved.drawn
        else:
            check_sheet(texts, len(seeds), pipeline.info.resolution, grid)  # before the drawing, which takes longer
            if grid.exists():
                log.info(f"{grid} exists and is replaced")
            pictures = list(_watched(pipeline.stream(texts, seeds=seeds, truncation_psi=trunc), total, stop))
            done = drawn = len(pictures)
            if done == total:
                each, labels = len(seeds), [f"seed {seed}" for seed in seeds]
                save_sheet([Row(text, pictures[at * each : (at + 1) * each], labels) for at, text in enumerate(texts)], grid)
                for prompt, seed in product(texts, seeds) if as_json else [("", 0)]:
                    show(prompt, seed, grid)
    if done < total:
        log.info(f"stopped after {done:,} of {total:,} pictures; {'no sheet is written' if grid else 'the same command goes on'}")
        ctx.exit(128 + (stop.signal or 0))  # the shell's code for a process that a signal ended
    if drawn < done:
        log.info(f"{done - drawn:,} of {done:,} pictures were there already (--overwrite draws them again)")


def _exploration(
    texts: Sequence[str],
    interpolate: tuple[str, str] | None,
    frames: int,
    mix: tuple[str, str] | None,
    variations: int | None,
    strength: float,
) -> Callable[["Text2Image", Sequence[int], float], list["Row"]] | None:
    """Return a function that draws what --interpolate, --mix or --variations asks for, with a model, seeds and a truncation; None without
    them."""
    given = [name for name, value in (("--interpolate", interpolate), ("--mix", mix), ("--variations", variations)) if value]
    pair = interpolate or mix
    if not given:
        return None
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)}: give one of them")
    if pair and texts:
        raise click.UsageError(f"{given[0]} takes its two prompts itself, without -p")
    if not pair and len(texts) != 1:
        raise click.UsageError(f"{given[0]} needs a single prompt")
    from gan_t2i.core.arguments import as_prompts
    from gan_t2i.sampling import explore
    from gan_t2i.sampling.sheets import Row

    as_prompts(pair or texts)  # before the model is loaded

    def draw(model: "Text2Image", seeds: Sequence[int], trunc: float) -> list[Row]:
        """Draw with the first seed, and the last where there are two ends."""
        ends = seeds[0], seeds[-1]
        if interpolate:
            pictures = list(explore.interpolate(model, *interpolate, seeds=ends, frames=frames, truncation_psi=trunc))
            return [Row(" -> ".join(interpolate), pictures, [f"{number} of {frames}" for number in range(1, frames + 1)])]
        if mix:
            ways = [(mix, ends), (mix[::-1], ends[::-1])]
            rows = [list(explore.mix(model, *pair, seeds=ends, truncation_psi=trunc)) for pair, ends in ways]
            labels = [f"from block {kept}" for kept in range(len(rows[0]) - 1, -1, -1)]
            return [Row(f"shapes: {a}, colours: {b}", row, labels) for row, ((a, b), _) in zip(rows, ways, strict=True)]
        count = variations or 0
        pictures = list(explore.variations(model, texts[0], seed=seeds[0], count=count, strength=strength, truncation_psi=trunc))
        return [Row(texts[0], pictures, [f"variation {number}" for number in range(count)])]

    return draw


def _write_rows(rows: Sequence["Row"], file: Path) -> None:
    """Write the rows, a single one as an animation where the format moves, and print the path."""
    from gan_t2i.core.images import ANIMATED, save_animation
    from gan_t2i.sampling.sheets import save_sheet

    if len(rows) == 1 and file.suffix.lower() in ANIMATED:
        save_animation(rows[0].pictures, file)
    else:
        save_sheet(rows, file)
    click.echo(file)


def _watched(items: Iterable[T], total: int, stop: "StopRequest") -> Iterator[T]:
    """Pass on the items under a progress bar, until a stop is requested."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    interval = 0.5 if sys.stderr.isatty() else 10.0  # seconds: live in a terminal, a line now and then in a log file
    with logging_redirect_tqdm([PACKAGE]), tqdm(items, "drawing", total, unit="img", mininterval=interval, delay=SHOWN_AFTER) as bar:
        for item in bar:
            yield item
            if stop.signal is not None:
                return


@contextlib.contextmanager
def _results(as_json: bool) -> Iterator[Callable[[str, int, Path], None]]:
    """Yield a function that prints the path of a picture, or its entry in a JSON list, which is whole even after an error."""
    from tqdm import tqdm

    count = 0

    def show(prompt: str, seed: int, path: Path) -> None:
        nonlocal count
        if as_json:
            entry = json.dumps({"prompt": prompt, "seed": seed, "path": str(path)}, ensure_ascii=False, indent=2)
            click.echo(("," if count else "[") + "\n" + textwrap.indent(entry, "  "), nl=False)
        else:
            (tqdm.write if sys.stdout.isatty() else click.echo)(str(path))
        count += 1

    try:
        yield show
    finally:
        if as_json:
            click.echo("\n]" if count else "[]")


def read_prompts(file: TextIO | None) -> list[str]:
    """The lines of `file` that are not blank; none without a file."""
    if file is None:
        return []
    try:
        return [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--prompts {file.name}: it is not UTF-8 text ({error.reason} at byte {error.start})") from error
