"""``gan-t2i sample``: prompts to pictures."""

import contextlib
import json
import logging
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click
from click.core import ParameterSource

from gan_t2i.cli.options import PROMPT_FILE, InSections, SheetFile, announce, model_options, read_prompts
from gan_t2i.core.log import PACKAGE

if TYPE_CHECKING:
    from PIL import Image

    from gan_t2i.core.stopping import StopRequest
    from gan_t2i.sampling.best_of import Best, Judge
    from gan_t2i.sampling.pipeline import Text2Image
    from gan_t2i.sampling.sheets import Row

log = logging.getLogger(__name__)

T = TypeVar("T")
Show = Callable[[str, int, Path], None]
"""Prints a prompt, a seed and the path of their picture."""

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
@click.option(
    "--best-of",
    type=click.IntRange(2, 256),
    metavar="N",
    help="Draw N seeds of each prompt, from the one of --seeds on, and keep the picture that the judge ranks first. "
    "It helps where seeds differ, as where several training pictures have one caption.",
)
@click.option(
    "--judge",
    type=click.Choice(["matcher"]),
    default="matcher",
    show_default=True,
    help="Judge of --best-of: matcher is that of evaluate retrieval, trained once on the pictures of the run.",
)
@click.option("--interpolate", nargs=2, metavar="A B", help="Go from prompt A to prompt B; to a .gif or .webp as an animation, else a strip.")
@click.option(
    "--frames", type=click.IntRange(2, 256), default=16, show_default=True, help="Pictures from A to B; an animation plays them there and back."
)
@click.option("--mix", nargs=2, metavar="A B", help="Draw the shapes of prompt A in the colours of prompt B, and the reverse.")
@click.option("--variations", type=click.IntRange(1, 256), metavar="N", help="Draw N variations of the first seed, in a strip.")
@click.option("--strength", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="How far each variation is from the seed.")
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
    text_encoder: str | None,
    device: str,
    **options: Any,
) -> None:
    """Generate pictures from prompts, and print their paths.

    RUN_OR_SNAPSHOT is a run folder, a snapshot file, latest (the newest run in runs/), or pretrained: icons64 (emoji in five styles) or
    pretrained:shapes64 (simple shapes), which come with gan_t2i. The default is the latest run, or icons64 where there is none.

    Each picture is written as it is drawn. Ctrl-C stops; the same command goes on with what is missing. A file that holds anything else is
    not replaced without --overwrite: the new one gets a number.
    """
    asked = Asked([*prompts, *read_prompts(prompt_file)], **options)
    _check_options(ctx, asked)
    _check_prompts(asked, model)
    if asked.best_of:
        pipeline, judge = _load_with_judge(model, asked, text_encoder, device)
        _write_pictures(ctx, pipeline, asked, _rank(pipeline, asked, judge))
        return
    from gan_t2i.sampling.pipeline import Text2Image

    pipeline = Text2Image.load(model, text_encoder=text_encoder, device=device)
    if asked.grid is not None and asked.mode in _EXPLORATIONS:
        announce(asked.grid)
        _write_rows(_EXPLORATIONS[asked.mode](pipeline, asked), asked.grid)
    else:
        _write_pictures(ctx, pipeline, asked)


@dataclass(frozen=True)
class Asked:
    """The prompts of -p and --prompts, and the options on what to draw with them and where to write it."""

    texts: list[str]
    seeds: list[int]
    trunc: float
    best_of: int | None
    judge: str
    interpolate: tuple[str, str] | None
    frames: int
    mix: tuple[str, str] | None
    variations: int | None
    strength: float
    outdir: Path
    overwrite: bool
    grid: Path | None
    as_json: bool

    @property
    def mode(self) -> str:
        """The option that decides on the result; "" for a file per picture. Raises `UsageError` for more than one exploration."""
        given = [option for option, value in zip(_EXPLORATIONS, (self.interpolate, self.mix, self.variations), strict=True) if value]
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)}: give one of them")
        return given[0] if given else "--grid" if self.grid else ""

    @property
    def prompts(self) -> list[str]:
        """The prompts to draw, in whichever option they are."""
        return list(self.interpolate or self.mix or self.texts)

    @property
    def drawn_seeds(self) -> Sequence[int]:
        """The seeds that each prompt is drawn with."""
        return range(self.seeds[0], self.seeds[0] + self.best_of) if self.best_of else self.seeds

    @property
    def kept(self) -> int:
        """Number of pictures of each prompt that are written."""
        return 1 if self.best_of else len(self.seeds)

    @property
    def ends(self) -> tuple[int, int]:
        """The seeds of two prompts: the first, and the last where there are several."""
        return self.seeds[0], self.seeds[-1]


def _check_options(ctx: click.Context, asked: Asked) -> None:
    """Raise `UsageError` for an option that has no effect in the mode, and for one that the mode needs."""
    mode, params = asked.mode, ctx.command.params
    given = {param.opts[0] for param in params if ctx.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE}
    for option, (modes, place) in _BELONGS.items():
        if option in given and mode not in modes:
            raise click.UsageError(f"{option} goes with {place}{f', not with {mode}' if mode else ''}")
    if "--judge" in given and not asked.best_of:
        raise click.UsageError("--judge goes with --best-of")
    if asked.best_of and len(asked.seeds) > 1:
        raise click.UsageError(f"--best-of draws its seeds from the one of --seeds on: give one, not {len(asked.seeds):,}")
    if mode in _EXPLORATIONS and asked.grid is None:
        animation = ", or for an animation a .gif or .webp" if mode == "--interpolate" else ""
        raise click.UsageError(f"--grid FILE is missing: the file for the strip{animation}")


def _check_prompts(asked: Asked, model: str) -> None:
    """Raise `UsageError` for prompts and numbers that cannot be drawn, before the model is loaded."""
    if (asked.interpolate or asked.mix) and asked.texts:
        raise click.UsageError(f"{asked.mode} takes its two prompts itself, without -p")
    if asked.variations and len(asked.texts) != 1:
        raise click.UsageError(f"{asked.mode} needs a single prompt")
    if not asked.prompts:
        is_model = model.partition(":")[0] in ("auto", "latest", "pretrained") or Path(model).exists()
        raise click.UsageError('no prompt: give -p "..." or --prompts FILE' + ("" if is_model else f'; did you mean -p "{model}"?'))
    if (total := len(asked.texts) * len(asked.drawn_seeds)) > MOST:
        raise click.UsageError(f"{total:,} pictures are more than {MOST:,}: ask for fewer at a time")
    from gan_t2i.core.arguments import as_number, as_prompts

    as_prompts(asked.prompts)
    as_number(asked.trunc, "--trunc")


def _load_with_judge(model: str, asked: Asked, text_encoder: str | None, device: str) -> tuple["Text2Image", "Judge"]:
    """Load the model of a run and the judge of its pictures, which is trained on first use.

    Raises `UsageError` for a model outside of a run and for a run of streamed data, and `GanT2IError` where the data are gone.
    """
    from gan_t2i.cli.subject import Subject
    from gan_t2i.core.errors import GanT2IError, UsageError
    from gan_t2i.evaluation.matcher import matcher_judge
    from gan_t2i.runs import resolve_snapshot, run_of

    snapshot = resolve_snapshot(model)
    subject = Subject(snapshot, run_of(snapshot), None, text_encoder, device)
    instead = "choose among several --seeds yourself"
    if subject.trained_on is None:
        name = "pretrained" if model == "auto" else model
        raise UsageError(f"the judge of --best-of is trained on a run's pictures, which {name} is without: name a run folder, or {instead}")
    subject.trained_on.require_packed("the judge of --best-of", instead)
    pipeline = subject.pipeline
    try:
        judge = matcher_judge(subject.retrieval_task.matcher, pipeline.encoder)
    except UsageError as error:
        raise GanT2IError(f"the judge of --best-of is trained on the run's pictures: {error}; put them back there, or {instead}") from error
    return pipeline, judge


def _rank(model: "Text2Image", asked: Asked, judge: "Judge") -> Iterator["Best"]:
    """Return the best picture of each prompt, each drawn when it is asked for, and log who says so."""
    from gan_t2i.sampling.best_of import best_of

    seeds = asked.drawn_seeds
    log.info(f"each picture: of the seeds {seeds[0]}-{seeds[-1]}, the one that the judge {asked.judge} ranks first")
    return best_of(model, asked.texts, judge, seeds=seeds, truncation_psi=asked.trunc)


def _draw_way(model: "Text2Image", asked: Asked) -> list["Row"]:
    """Draw one row, from the first prompt to the second."""
    from gan_t2i.sampling.explore import interpolate
    from gan_t2i.sampling.sheets import Row

    first, second = asked.prompts
    pictures = list(interpolate(model, first, second, seeds=asked.ends, frames=asked.frames, truncation_psi=asked.trunc))
    return [Row(f"{first} -> {second}", pictures, [f"{number} of {asked.frames}" for number in range(1, asked.frames + 1)])]


def _draw_mixes(model: "Text2Image", asked: Asked) -> list["Row"]:
    """Draw two rows: the shapes of the first prompt in the colours of the second, and the reverse."""
    from gan_t2i.sampling.explore import mix
    from gan_t2i.sampling.sheets import Row

    rows = []
    for (shapes, colours), ends in ((asked.prompts, asked.ends), (asked.prompts[::-1], asked.ends[::-1])):
        pictures = list(mix(model, shapes, colours, seeds=ends, truncation_psi=asked.trunc))
        labels = [f"from block {kept}" for kept in reversed(range(len(pictures)))]
        rows.append(Row(f"shapes: {shapes}, colours: {colours}", pictures, labels))
    return rows


def _draw_variations(model: "Text2Image", asked: Asked) -> list["Row"]:
    """Draw one row around the first seed."""
    from gan_t2i.sampling.explore import variations
    from gan_t2i.sampling.sheets import Row

    [prompt], count = asked.prompts, asked.variations or 0
    pictures = list(variations(model, prompt, seed=asked.seeds[0], count=count, strength=asked.strength, truncation_psi=asked.trunc))
    return [Row(prompt, pictures, [f"variation {number}" for number in range(count)])]


_EXPLORATIONS = {"--interpolate": _draw_way, "--mix": _draw_mixes, "--variations": _draw_variations}
_BELONGS = {
    "--best-of": (["", "--grid"], "a picture per prompt"),
    "--frames": (["--interpolate"], "--interpolate"),
    "--strength": (["--variations"], "--variations"),
    "--outdir": ([""], "a file per picture"),
    "--overwrite": ([""], "a file per picture"),
    "--json": (["", "--grid"], "a picture per prompt and seed"),
}
"""Option -> the modes in which it has an effect, and their name in a message."""


def _write_rows(rows: Sequence["Row"], file: Path) -> None:
    """Write the rows, a single one as an animation where the format moves, and print the path."""
    from gan_t2i.core.images import ANIMATED, save_animation
    from gan_t2i.sampling.sheets import save_sheet

    if len(rows) == 1 and file.suffix.lower() in ANIMATED:
        save_animation(rows[0].pictures, file)
    else:
        save_sheet(rows, file)
    click.echo(file)


def _write_pictures(ctx: click.Context, pipeline: "Text2Image", asked: Asked, best: "Iterator[Best] | None" = None) -> None:
    """Draw every prompt with every seed, or take the best of each, into files or on a sheet; a stop ends the process with the signal's code."""
    from gan_t2i.core.stopping import StopRequest

    total = len(asked.texts) * asked.kept
    with StopRequest() as stop, _results(asked.as_json) as show:
        watch = partial(_watched, total=total, stop=stop)
        if asked.grid is None:
            done = _write_files(pipeline, asked, best, watch, show)
        else:
            done = _write_sheet(pipeline, asked, asked.grid, best, watch, show)
    if done < total:
        log.info(f"stopped after {done:,} of {total:,} pictures; {'no sheet is written' if asked.grid else 'the same command goes on'}")
        ctx.exit(128 + (stop.signal or 0))  # the shell's code for a process that a signal ended


def _write_files(pipeline: "Text2Image", asked: Asked, best: "Iterator[Best] | None", watch: Callable[..., Any], show: Show) -> int:
    """Write a file per picture; returns the number of files."""
    from gan_t2i.sampling.save import save_all

    done = drawn = 0
    files = save_all(pipeline, asked.texts, asked.drawn_seeds, asked.trunc, asked.outdir, overwrite=asked.overwrite, best=best)
    for saved in watch(files):
        show(saved.prompt, saved.seed, saved.path)
        done, drawn = done + 1, drawn + saved.drawn
    if drawn < done:
        log.info(f"{done - drawn:,} of {done:,} pictures were there already (--overwrite draws them again)")
    return done


def _write_sheet(pipeline: "Text2Image", asked: Asked, file: Path, best: "Iterator[Best] | None", watch: Callable[..., Any], show: Show) -> int:
    """Write all pictures on one sheet, if no stop is requested; returns the number of pictures."""
    from gan_t2i.sampling.sheets import Row, check_sheet, save_sheet

    each = asked.kept
    check_sheet(asked.texts, each, pipeline.info.resolution, file)  # before the drawing, which takes longer
    announce(file)
    drawn = list(watch(_drawn(pipeline, asked, best)))
    if len(drawn) == each * len(asked.texts):
        rows = [drawn[at : at + each] for at in range(0, len(drawn), each)]
        save_sheet([Row(row[0][0], [picture for _, _, picture in row], [f"seed {seed}" for _, seed, _ in row]) for row in rows], file)
        for prompt, seed, _ in drawn if asked.as_json else drawn[:1]:
            show(prompt, seed, file)
    return len(drawn)


def _drawn(pipeline: "Text2Image", asked: Asked, best: "Iterator[Best] | None") -> Iterator[tuple[str, int, "Image.Image"]]:
    """Yield prompt, seed and picture of everything on the sheet, in order."""
    if best is not None:
        yield from ((each.prompt, each.seed, each.picture) for each in best)
        return
    pictures = pipeline.stream(asked.texts, seeds=asked.seeds, truncation_psi=asked.trunc)
    for (prompt, seed), picture in zip(product(asked.texts, asked.seeds), pictures, strict=True):
        yield prompt, seed, picture


def _watched(items: Iterable[T], total: int, stop: "StopRequest") -> Iterator[T]:
    """Pass on the items under a progress bar, until a stop is requested."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    interval = 0.5 if sys.stderr.isatty() else 10.0  # seconds: live in a terminal, a line now and then in a log file
    items = iter(items)
    first = list(islice(items, 1))  # its messages, such as unknown words, would show the bar at once, and leave it at 0%
    bar = tqdm(chain(first, items), "drawing", total, unit="img", mininterval=interval, delay=SHOWN_AFTER)
    with logging_redirect_tqdm([PACKAGE]), bar:
        for item in bar:
            yield item
            if stop.signal is not None:
                return


@contextlib.contextmanager
def _results(as_json: bool) -> Iterator[Show]:
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
