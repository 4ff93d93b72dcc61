"""The package's log, with one logger per module below ``gan_t2i``, and a way to quiet the libraries.

A program that imports the package decides for itself what to show; the command line shows everything on stderr.
"""

import contextlib
import json
import logging
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Never, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

PACKAGE = logging.getLogger("gan_t2i")

# Controls (Cc), direction overrides and other invisible characters (Cf), lone surrogates (Cs), characters of no known look (Co), line ends (Zl,
# Zp). The joiners of emoji and of Indic and Arabic letters are harmless.
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"


def visible(text: str, keep: str = "") -> str:
    """Return `text` safe to print: characters that a terminal obeys or hides are escaped, except those in `keep`.

    Beyond ASCII the escapes are JSON's, so that JSON stays JSON.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(character) if _is_unsafe(character) and character not in keep else character for character in text)


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in _UNSAFE and character not in _JOINERS


def _escaped(character: str) -> str:
    return repr(character)[1:-1] if character < " " else f"\\u{ord(character):04x}" if character < "\u0100" else json.dumps(character)[1:-1]


class VisibleFormatter(logging.Formatter):
    """Formats messages with `visible`; lines stay lines."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), keep="\n")


class VisibleStream:
    """A text stream that writes to another with `visible`; lines and tabs stay."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(visible(text, keep="\n\t"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Hides the package's messages below an error."""
    level = PACKAGE.level
    PACKAGE.setLevel(logging.ERROR)
    try:
        yield
    finally:
        PACKAGE.setLevel(level)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings and progress bars of transformers, timm and the hub's client, and restores every setting afterwards."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers: Any = transformers_logging  # its functions carry no types
    transformers.get_verbosity()  # its first use sets the logger's level, which must not come after ours
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "sentence_transformers", "timm", "transformers")]
    levels = [logger.level for logger in loggers]
    transformers_bars, hub_bars = transformers.is_progress_bar_enabled(), not are_progress_bars_disabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        transformers.disable_progress_bar()
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if transformers_bars:
            transformers.enable_progress_bar()
        # transformers switches the hub's bars along with its own, so their setting is restored last
        (enable_progress_bars if hub_bars else disable_progress_bars)()


def training_bar(desc: str | None, total: int, done: int) -> "tqdm[Never]":
    """Return the progress bar of a training on `total` images, of which `done` were shown."""
    from tqdm import tqdm  # late, for a quick start of the command

    return tqdm(desc=desc, total=total, initial=done, unit="img", unit_scale=True, **bar_options())


def bar_options() -> dict[str, Any]:
    """Return what every progress bar of minutes has: live in a terminal, it is a line now and then in a log file."""
    interval = 0.5 if sys.stderr.isatty() else 30.0  # seconds
    return {"mininterval": interval, "maxinterval": max(interval, 10.0), "dynamic_ncols": True}
