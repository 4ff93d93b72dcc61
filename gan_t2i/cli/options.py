"""Options that several commands share."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import click

log = logging.getLogger(__name__)

# `DataSettings` holds the defaults and checks the values; importing it here would make every command wait for Pillow.
_PICTURE_OPTIONS = (
    click.option("--data-format", "format", metavar="NAME", help="Format of the data, or of the contents of a zip.  [default: detected]"),
    click.option("--caption-column", metavar="NAME", help="Column or key of the captions.  [default: text, caption, prompt or title]"),
    click.option("--caption-lines", metavar="first|all", help="Which lines of a text file are captions.  [default: all]"),
    click.option(
        "--image-root", metavar="FOLDER", help="Folder of the pictures that a table, COCO or dataset.json file names.  [default: its own]"
    ),
    click.option("--on-bad", type=click.Choice(["skip", "error"]), help="Count and leave out unusable items, or stop.  [default: skip]"),
    click.option("--crop", metavar="center|fit|pad", help="Centre square, the whole squeezed, or the whole with borders.  [default: center]"),
    click.option("--alpha", is_flag=True, default=None, help="Keep transparency, and learn to generate it."),
    click.option("--background", metavar="COLOUR", help="Colour behind transparent pictures and around padded ones.  [default: white]"),
    click.option("--foreground", metavar="COLOUR", help="Colour of icons that have none of their own.  [default: black]"),
    click.option("--flags", is_flag=True, default=None, help="Read the flags of countries in icon sets."),
    click.option("--skin-tones", is_flag=True, default=None, help="Read the people of icon sets in every skin tone."),
)


PROMPT_FILE = click.File("r", encoding="utf-8-sig")  # Windows editors begin a file with a mark, which is no part of a prompt


def read_text(file: TextIO, option: str) -> str:
    """Return the text of a file that `option` named; raises `UsageError` where it is not UTF-8."""
    try:
        return file.read()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{option} {file.name}: it is not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_prompts(file: TextIO | None) -> list[str]:
    """The lines of `file` that are not blank; none without a file."""
    lines = read_text(file, "--prompts").split("\n") if file is not None else []
    return [line.strip() for line in lines if line.strip()]


class InSections(click.Command):
    """A command whose help lists its options under headings.

    Args:
        sections: the name of an option -> the heading that begins with it.
    """

    def __init__(self, *arguments: Any, sections: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, in their order."""
        heading, rows = "Options", dict[str, list[tuple[str, str]]]()
        for param in self.get_params(ctx):
            heading = self.sections.get(param.name or "", heading)
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                rows.setdefault(heading, []).append(record)
        for heading, records in rows.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class OutputFile(click.Path):
    """A file that the command writes."""

    def __init__(self, *, allow_dash: bool = False) -> None:
        super().__init__(path_type=Path, dir_okay=False, allow_dash=allow_dash)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raise `UsageError` for a file that cannot be written, before anything is computed for it."""
        from gan_t2i.core.files import check_folder

        path: Path = super().convert(value, param, ctx)  # type: ignore[assignment]
        if value != "-":
            check_folder(path)
        return path


class PictureFile(OutputFile):
    """A file that a picture is written to, in the format that its name ends in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raise `UsageError` for a file that cannot be written."""
        from gan_t2i.core.images import check_writable

        path: Path = super().convert(value, param, ctx)
        check_writable(path)
        return path


class SheetFile(PictureFile):
    """A picture file, or an HTML page."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raise `UsageError` for a file that cannot be written."""
        is_page = str(value).lower().endswith(".html")
        return OutputFile.convert(self, value, param, ctx) if is_page else super().convert(value, param, ctx)


def announce(*files: Path | None) -> None:
    """Log which of `files`, which are about to be written, replace one that exists."""
    for file in files:
        if file is not None and file.exists():
            log.info(f"{file} exists and is replaced")


def picture_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that decide how pictures and captions are read, the fields of `DataSettings`."""
    for option in reversed(_PICTURE_OPTIONS):
        function = option(function)
    return function


def text_encoder_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --text-encoder."""
    return click.option("--text-encoder", metavar="FOLDER|NAME", help="The text encoder's weights, if not where training found them.")(function)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options for loading a trained model."""
    device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
    return text_encoder_option(device(function))


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config and --preset, as `config_path` and `preset`."""
    preset = click.option("--preset", metavar="NAME", help="A shipped recipe, such as quickstart or emoji64, in place of a file.")
    return click.option("--config", "config_path", type=click.Path(path_type=Path), help="YAML file with the config.")(preset(function))


def config_values(config_path: Path | None, preset: str | None) -> dict[str, Any] | None:
    """Return the values of the config that --config or --preset names; None without either."""
    from gan_t2i.core import recipes
    from gan_t2i.core.config import read_yaml
    from gan_t2i.core.errors import UsageError

    if config_path is not None and preset is not None:
        raise UsageError("--config and --preset both name a config: give one of them")
    path = config_path or (recipes.find(preset) if preset is not None else None)
    return read_yaml(path) if path is not None else None


def without_none(**options: object) -> dict[str, object]:
    """Return the options that have a value."""
    return {key: value for key, value in options.items() if value is not None}
