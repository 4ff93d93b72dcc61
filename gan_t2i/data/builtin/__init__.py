"""The data sets that come with the package: made on first use, kept in the cache folder, drawn at the resolution that trains on them."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from gan_t2i.core.errors import UsageError
from gan_t2i.core.files import cache_dir
from gan_t2i.data.readers import hub

log = logging.getLogger(__name__)

BUILTIN = frozenset({"shapes", "emoji"})


def resolve_source(data: str, resolution: int, *, alpha: bool = False) -> Path | str:
    """The folder of the built-in set named `data` for training at `resolution` pixels, made if need be, with transparency where it has any and
    `alpha` asks for it; any other `data` as a path, but for hf:owner/name, which stays a name.

    A folder of one's own that is called shapes or emoji is written ./shapes or ./emoji.
    """
    if data == "shapes":
        return _shapes(resolution)
    if data == "emoji":
        return _emoji(resolution, "transparent" if alpha else "white")
    return data if data.startswith(hub.PREFIX) else Path(data).expanduser()


def _shapes(resolution: int) -> Path:
    from gan_t2i.data.builtin import shapes

    size = min(max(resolution, shapes.SMALLEST), shapes.LARGEST)
    # The defaults of make_shapes are part of its version.
    return _made(f"shapes-{size}px-v{shapes.VERSION}", lambda folder: shapes.make_shapes(folder, size=size))


def _emoji(resolution: int, background: str) -> Path:
    import emoji

    from gan_t2i.data.builtin import emoji_font

    size = min(max(resolution, emoji_font.SMALLEST), emoji_font.LARGEST)
    font = emoji_font.find_font()
    # Another font draws other pictures, and another release of the library knows other names.
    origin = hashlib.sha256(font.read_bytes() + emoji.__version__.encode()).hexdigest()[:12]
    name = f"emoji-{size}px-{origin}-v{emoji_font.VERSION}{'-transparent' * (background == 'transparent')}"
    return _made(name, lambda folder: emoji_font.make_emoji(folder, font=font, size=size, background=background))


def _made(name: str, make: Callable[[Path], Path]) -> Path:
    folder = cache_dir() / "datasets" / name
    if not _is_whole(folder):
        log.info(f"making the built-in data set {name} (once) in {folder}")
        try:
            make(folder)
        except (OSError, UsageError):
            # Another process may have been faster: its folder stands, and renaming ours over it fails.
            if not _is_whole(folder):
                raise
    return folder


def _is_whole(folder: Path) -> bool:
    # The folder appears under its name only when it is finished.
    return (folder / "metadata.jsonl").is_file()
