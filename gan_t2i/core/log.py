"""The package's log, with one logger per module below ``gan_t2i``, and a way to quiet the libraries.

A program that imports the package decides for itself what to show; the command line shows everything on stderr.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

PACKAGE = logging.getLogger("gan_t2i")


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
