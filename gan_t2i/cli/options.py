"""Options that several commands share: how pictures and captions are read."""

from collections.abc import Callable
from typing import Any

import click

# What is allowed and the defaults stand in `DataSettings`, which checks; importing it here would make every command wait for Pillow.
_READING = (
    click.option("--data-format", "format", metavar="NAME", help="Format of the data or of what a zip holds.  [default: found out]"),
    click.option("--caption-column", metavar="NAME", help="Column or key of the captions.  [default: text, caption, prompt or title]"),
    click.option("--caption-lines", metavar="first|all", help="Which lines of a text file are captions.  [default: all]"),
    click.option("--image-root", metavar="FOLDER", help="Folder of the pictures that a COCO, OpenCLIP or dataset.json file names."),
    click.option("--on-bad", type=click.Choice(["skip", "error"]), help="Count and leave out unusable items, or stop.  [default: skip]"),
)
_DECODING = (
    click.option("--crop", metavar="center|fit|pad", help="Centre square, squeezed, or whole with borders.  [default: center]"),
    click.option("--alpha", is_flag=True, default=None, help="Keep transparency, and learn to draw it."),
    click.option("--background", metavar="COLOUR", help="Below transparent pictures and around padded ones.  [default: white]"),
)


def picture_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of `DataSettings` that decide on records and on pixels."""
    for option in reversed(_READING + _DECODING):
        function = option(function)
    return function


def given(**options: object) -> dict[str, object]:
    """The options that the command line names."""
    return {key: value for key, value in options.items() if value is not None}
