"""The `gan-t2i` command: one module a subcommand, imported only when it is called, so that `--help` answers at once."""

import contextlib
import gc
import importlib
import logging
from collections.abc import Iterator

import click

from gan_t2i import __version__
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.log import PACKAGE

# name -> the line that `gan-t2i --help` shows; each lives in the module of the same name, as `command`
COMMANDS = {
    "train": "Train a model on captioned pictures.",
    "sample": "Draw pictures from prompts.",
    "evaluate": "Measure how well a model obeys its prompts, and how real its pictures look.",
    "audit": "Look whether a model copies its training pictures.",
    "data": "Make, check and pack caption data sets.",
    "bench": "Measure how fast configs train and draw here.",
    "doctor": "Say what works here, and what to train data with.",
    "info": "Show what a run or a snapshot holds, or which models are registered.",
}


class Failure(click.ClickException):
    """One of the project's errors, shown as one sentence."""


class UsageFailure(Failure):
    """The same for what the caller got wrong."""

    exit_code = UsageError.exit_code


class Echo(logging.Handler):
    """Shows each record as one line on stderr, beside the results on stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(record.getMessage(), err=True)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Within ``with``, the package's log goes to stderr."""
    handler, level = Echo(), PACKAGE.level
    PACKAGE.addHandler(handler)
    PACKAGE.setLevel(logging.INFO)
    try:
        yield
    finally:
        PACKAGE.removeHandler(handler)
        PACKAGE.setLevel(level)


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are called, and which turns the project's errors into one sentence."""

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

    def invoke(self, ctx: click.Context) -> object:
        try:
            with reported():
                return super().invoke(ctx)
        except GanT2IError as error:
            raise (UsageFailure if isinstance(error, UsageError) else Failure)(str(error)) from error
        except BrokenPipeError:  # the reader of our output has gone; click knows what to do
            raise
        except OSError as error:  # a full disk, a folder that may not be written
            raise Failure(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="gan-t2i")
def command() -> None:
    """Train a text-to-image GAN on your own captioned pictures, and draw from words."""


def main() -> None:
    """Entry point of the console script and of ``python -m gan_t2i``."""
    try:
        command(prog_name="gan-t2i")
    finally:
        # Python looks for cycles once more before it ends, among the millions of objects of torch: seconds in which a process that was asked
        # to stop is killed.
        gc.freeze()
