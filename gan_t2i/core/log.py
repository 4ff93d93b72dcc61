"""What a command reports while it works: the loggers below ``gan_t2i``, one a module.

A program that imports the package decides for itself what to show; the command line shows everything on stderr.
"""

import contextlib
import logging
from collections.abc import Iterator

PACKAGE = logging.getLogger("gan_t2i")


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Within ``with``, nothing below a warning is reported."""
    level = PACKAGE.level
    PACKAGE.setLevel(logging.WARNING)
    try:
        yield
    finally:
        PACKAGE.setLevel(level)
