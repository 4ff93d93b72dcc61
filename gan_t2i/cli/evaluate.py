"""``gan-t2i evaluate``: measures of a trained model, one subcommand each."""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from gan_t2i.cli.options import PROMPT_FILE, OutputFile, PictureFile, announce, model_options, read_prompts, without_none
from gan_t2i.cli.subject import Subject

if TYPE_CHECKING:
    from gan_t2i.evaluation.results import Result

log = logging.getLogger(__name__)


class Measures(click.Group):
    """A group that lists its subcommands in their order here, and names them where a run stands in place of one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None:
            ctx.fail(f"{args[0]} is not a measure; write gan-t2i evaluate shapes, retrieval, pictures, cells or copies, and then the run")
        return super().resolve_command(ctx, args)


@click.group("evaluate", cls=Measures)
def command() -> None:
    """Measure a trained model.

    For a snapshot in a run folder, figures and sheets go into the run's evaluation/ folder, unless --json and --sheet name other files, and the
    figures to TensorBoard. Settings that differ from the defaults, and other data than the run's, are part of the file names.
    """


def measure(function: Callable[..., "Result"]) -> Callable[..., None]:
    """Turns a function that measures a `Subject` into the body of a subcommand, which prints and writes the `Result`."""

    @click.argument("model", metavar="[RUN_OR_SNAPSHOT]", default="latest")
    @click.option("--json", "json_file", type=OutputFile(), help="Write all figures to this file.")
    @model_options
    @functools.wraps(function)
    def body(
        model: str,
        text_encoder: str | None,
        device: str,
        json_file: Path | None,
        sheet_file: Path | None = None,
        data: str | None = None,
        **settings: Any,
    ) -> None:
        """Measure the model, print the table and write the files. `functools.wraps` shows the measure's own docstring, which is the help."""
        from gan_t2i.evaluation.results import write, write_scalars
        from gan_t2i.runs import resolve_snapshot, run_of

        snapshot = resolve_snapshot(model)
        subject = Subject(snapshot, run_of(snapshot), data, text_encoder, device)
        result = function(subject, **without_none(**settings))
        click.echo(result.table())
        info = subject.pipeline.info
        metadata = {"snapshot": str(snapshot), "nimg": info.nimg, "resolution": info.resolution}
        if "dataset" in vars(subject):
            fingerprint = subject.dataset.fingerprint
            metadata |= {"data_fingerprint": fingerprint, "own_data": fingerprint == info.data_fingerprint}
        announce(json_file, sheet_file)
        written = write(result, subject.run, metadata, json_file, sheet_file)
        for path in written:
            log.info(f"written: {path}")
        if sheet_file is not None and sheet_file not in written:
            log.info(f"no picture failed, so there is nothing to show in {sheet_file}")
        if subject.run is not None:
            write_scalars(result, subject.run, metadata)

    return body


_data = click.option(
    "--data",
    metavar="SOURCE",
    help="Captioned pictures, as for train; pack them first with `gan-t2i data pack` where reading them needs options.  "
    "[default: what the run was trained on]",
)
_features = click.option(
    "--features",
    metavar="NAME",
    multiple=True,
    help="Network to compare pictures in: random, matcher, efficientnet-lite2 or inception; repeatable.  [default: random and matcher]",
)
_sheet = click.option("--sheet", "sheet_file", type=PictureFile(), help="Write the sheet to this file.")


@command.command()
@click.option("--seeds", type=click.IntRange(1), help="Pictures per prompt.  [default: 4]")
@click.option("--limit", type=click.IntRange(2), help="Only the first N prompts of each task.  [default: all 100]")
@_sheet
@measure
def shapes(subject: Subject, **settings: Any) -> "Result":
    """Grade pictures of simple shapes.

    The prompts ask for combinations that the built-in data set never shows in training, in the words of basic-shapes for a run of that set; a
    model of other pictures scores low. Chance is the score with the captions shuffled. The sheet shows the worst failures.
    """
    from gan_t2i.evaluation.shapes.prompts import prompts_for
    from gan_t2i.evaluation.shapes.suite import run_suite

    data = subject.trained_on
    return run_suite(subject.generate, prompts=prompts_for(data.source if data else None), **settings)


@command.command()
@_data
@click.option("--seeds", type=click.IntRange(1), help="Pictures per caption.  [default: 1]")
@click.option("--limit", type=click.IntRange(2), help="At most N captions of each side.  [default: 200]")
@measure
def retrieval(subject: Subject, **settings: Any) -> "Result":
    """Find each picture's caption among a hundred (R@1).

    A matcher, trained on the real pairs alone and kept in the cache, ranks the captions. Its scores of real pictures are shown beside those
    of generated ones, for training and held-out captions.
    """
    from gan_t2i.evaluation.retrieval import run_retrieval

    return run_retrieval(subject.generate, subject.retrieval_task, **settings)


@command.command()
@_data
@_features
@click.option("--seeds", type=click.IntRange(2), help="Pictures per prompt for the diversity.  [default: 4]")
@click.option("--limit", type=click.IntRange(2), help="At most N pictures of each side.  [default: 2000]")
@measure
def pictures(subject: Subject, features: Sequence[str], **settings: Any) -> "Result":
    """Compare generated with real pictures, whatever the captions.

    Reports KID, precision, recall, density, coverage and the diversity among seeds, in several feature networks, each beside the score
    of real pictures.
    """
    from gan_t2i.evaluation.pictures import FEATURES, LIMIT, check_enough, run_pictures

    names = features or FEATURES
    subject.check_features(names)
    check_enough(subject.dataset, settings.get("limit", LIMIT))
    rebuild = subject.pipeline.rebuild if subject.pipeline.info.autoencoder is not None else None
    return run_pictures(subject.generate, subject.dataset, subject.open_spaces(names), rebuild=rebuild, **settings)


@command.command()
@_data
@_features
@click.option("--seeds", type=click.IntRange(2), help="Pictures per prompt.  [default: 4]")
@click.option("--limit", type=click.IntRange(2), help="At most N held-out drawings of each kind.  [default: 400]")
@_sheet
@measure
def cells(subject: Subject, features: Sequence[str], **settings: Any) -> "Result":
    """Draw known things in known styles that training never showed together.

    For data of `gan-t2i data make icons`. What the model draws for a held-out cell or thing should be nearest to the true drawing among a
    hundred of its style, and a judge should name that style. Also reports R@1 of the captions of held-out things, and the diversity among
    seeds for captions without a style. Real drawings' figures stand beside. The sheet shows each caption, what was drawn, and the true
    drawing last.
    """
    from gan_t2i.evaluation.cells import check_cells, run_cells
    from gan_t2i.evaluation.pictures import FEATURES

    names = features or FEATURES
    subject.check_features(names)
    check_cells(subject.dataset)
    spaces = subject.open_spaces(names)
    return run_cells(subject.generate, subject.dataset, spaces, subject.pipeline.device, lambda: subject.retrieval_task, **settings)


@command.command()
@_data
@click.option("--prompts", "prompt_file", type=PROMPT_FILE, help="Your own prompts, one a line; - for standard input.")
@click.option("--features", metavar="NAME", help="Network for the distances: random, efficientnet-lite2 or inception.  [default: random]")
@click.option("--limit", type=click.IntRange(1), help="At most N prompts of each kind.  [default: 200]")
@_sheet
@measure
def copies(subject: Subject, prompt_file: TextIO | None = None, features: str | None = None, **settings: Any) -> "Result":
    """Find copies of training pictures.

    Pictures are generated for --prompts, else for training, held-out and recombined captions. Their distances to the nearest training
    picture are compared with those of real pictures that the model was not trained on. The sheet shows the closest pictures.
    """
    from gan_t2i.core.errors import UsageError
    from gan_t2i.evaluation.copies import NETWORK, check_copies, run_copies

    prompts = read_prompts(prompt_file)
    if prompt_file is not None and not prompts:
        raise UsageError(f"--prompts {prompt_file.name} holds no prompt")
    network = features or NETWORK
    subject.check_features([network])
    check_copies(subject.dataset, network)
    [space] = subject.open_spaces([network])
    return run_copies(subject.generate, subject.dataset, space, prompts=prompts, **settings)
