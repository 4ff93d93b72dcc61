"""The `gan-t2i` command, with one module per subcommand, imported only when it is called, so that `--help` answers at once."""

import contextlib
import gc
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click

from gan_t2i import __version__
from gan_t2i.core import threads
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.log import PACKAGE, VisibleFormatter, VisibleStream, visible

# name -> its line in `gan-t2i --help`; the subcommand is `command` in the module of the same name
COMMANDS = {
    "train": "Train a model on captioned pictures.",
    "sample": "Generate pictures from prompts.",
    "edit": "Change a picture by words.",
    "project": "Find the words and styles with which a model draws a picture.",
    "explain": "Show which word of a prompt moves which part of its picture.",
    "serve": "Serve a model over HTTP, with the images API of OpenAI.",
    "export": "Write a model for other people: with a model card, as ONNX, or for the Hugging Face hub.",
    "evaluate": "Measure a trained model: shapes, retrieval, pictures, cells or copies.",
    "audit": "The same as evaluate copies.",
    "data": "Make, check and pack data sets of captioned pictures.",
    "bench": "Measure how fast configs train and sample on this machine.",
    "doctor": "Check this machine, and recommend a config for a data set.",
    "sign": "Sign pictures as made by a model (C2PA).",
    "verify": "Show the marks that say that a model made a picture.",
    "info": "Describe a run or a snapshot, or list the registered models.",
}


class UsageFailure(click.ClickException):
    """An error in how the command was called."""

    exit_code = UsageError.exit_code


@contextlib.contextmanager
def _visible_errors() -> Iterator[None]:
    """Turn an error of the project or the system into one sentence and an exit code, with control characters escaped, as in click's own."""
    try:
        yield
    except GanT2IError as error:
        raise (UsageFailure if isinstance(error, UsageError) else click.ClickException)(visible(str(error))) from error
    except click.ClickException as error:  # of several lines where it lists what is allowed
        text = visible(error.format_message(), keep="\n\t")
        if text == error.format_message():
            raise
        raise (click.UsageError(text, error.ctx) if isinstance(error, click.UsageError) else click.ClickException(text)) from error
    except BrokenPipeError:  # the reader of our output has gone; click handles that
        raise
    except OSError as error:  # a full disk, a folder that may not be written
        raise click.ClickException(visible(f"{error.filename}: {error.strerror}" if error.filename else str(error))) from error


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is called, and shows the project's errors as one sentence, and its log on stderr."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"gan_t2i.cli.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _visible_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> object:
        """Run the subcommand with the package's log on stderr."""
        handler, level = logging.StreamHandler(), PACKAGE.level  # results go to stdout
        handler.setFormatter(VisibleFormatter())
        PACKAGE.addHandler(handler)
        PACKAGE.setLevel(logging.INFO)
        try:
            with contextlib.redirect_stdout(VisibleStream(sys.stdout)), _visible_errors():
                return super().invoke(ctx)
        finally:
            PACKAGE.removeHandler(handler)
            PACKAGE.setLevel(level)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="gan-t2i")
def command() -> None:
    """Train a text-to-image GAN on your own captioned pictures, and generate pictures from prompts."""


def main() -> None:
    """Entry point of the console script and of ``python -m gan_t2i``."""
    threads.begin()
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's; pictures have a lower limit here
    try:
        command(prog_name="gan-t2i")
    finally:
        # Skips the final garbage collection, which walks torch's millions of objects for seconds. A process that was asked to stop may be
        # killed in that time.
        gc.freeze()
