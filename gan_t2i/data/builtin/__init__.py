"""Built-in data sets: made on first use at the resolution of training, and kept in the cache folder."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from gan_t2i.core.errors import UsageError
from gan_t2i.core.files import cache_dir
from gan_t2i.data.readers import hub
from gan_t2i.data.settings import DataSettings

log = logging.getLogger(__name__)

BUILTIN = frozenset({"shapes", "basic-shapes", "emoji"})


def resolve_source(data: str, resolution: int, settings: DataSettings | None = None) -> Path | str:
    """Return the folder of the built-in set named `data` for training at `resolution` pixels, made on first use; any other `data` as a path,
    except that hf:owner/name stays a name.

    With `settings.alpha` the set is made with transparency, if it has any. A user's own folder called shapes or emoji is written ./shapes or
    ./emoji. Raises `UsageError` for an empty name.
    """
    if not data:  # a shell variable that is not set, rather than the folder that one happens to be in
        raise UsageError("data is an empty name: name a folder, a file, hf:owner/name or a built-in set")
    if data in ("shapes", "basic-shapes"):
        return _shapes(data, resolution)
    if data == "emoji":
        return _emoji(resolution, "transparent" if settings and settings.alpha else "white")
    return data if data.startswith(hub.PREFIX) else Path(os.path.expanduser(data))  # unlike Path's, it keeps ~name where nobody has that name


def _shapes(name: str, resolution: int) -> Path:
    from gan_t2i.data.builtin import basic_shapes, shapes

    kind, version = (shapes.SHAPES, shapes.VERSION) if name == "shapes" else (basic_shapes.BASIC_SHAPES, basic_shapes.VERSION)
    size = min(max(resolution, shapes.SMALLEST), shapes.LARGEST)
    # the defaults of make_shapes are part of its version
    return _make_once(f"{name}-{size}px-v{version}", lambda folder: shapes.make_shapes(folder, kind=kind, size=size))


def _emoji(resolution: int, background: str) -> Path:
    import emoji

    from gan_t2i.data.builtin import emoji_font

    size = min(max(resolution, emoji_font.SMALLEST), emoji_font.LARGEST)
    font = emoji_font.find_font()
    # another font draws other pictures, and another release of the library has other names
    origin = hashlib.sha256(font.read_bytes() + emoji.__version__.encode()).hexdigest()[:12]
    name = f"emoji-{size}px-{origin}-v{emoji_font.VERSION}{'-transparent' * (background == 'transparent')}"
    return _make_once(name, lambda folder: emoji_font.make_emoji(folder, font=font, size=size, background=background))


def _make_once(name: str, make: Callable[[Path], Path]) -> Path:
    folder = cache_dir() / "datasets" / name
    made = folder / "metadata.jsonl"  # the folder appears under its name only when it is finished
    if not made.is_file():
        log.info(f"making the built-in data set {name} (once) in {folder}")
        try:
            make(folder)
        except (OSError, UsageError):
            # another process may have been faster: its folder is there, and renaming ours over it fails
            if not made.is_file():
                raise
    return folder
