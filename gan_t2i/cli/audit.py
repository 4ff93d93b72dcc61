"""``gan-t2i audit``: another name of ``gan-t2i evaluate copies``."""

from gan_t2i.cli.evaluate import copies as command

__all__ = ["command"]
