"""The cache folder, and atomic writes: to a temporary name, flushed, then renamed."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gan_t2i.core.errors import UsageError
from gan_t2i.core.stopping import cleanup_on_sigterm

FEW_FILES = 16
"""Up to this number files are flushed one by one. For the thousands of a data set that takes minutes on a slow disk; one flush of the whole
system is quicker, though it waits for other programs' writes."""


def cache_dir() -> Path:
    """Return the root of everything that can be made again (packed pictures, embeddings, built-in data sets): ``$GAN_T2I_CACHE``, or
    ``gan_t2i`` in the user's cache folder. Raises `UsageError` where neither is known."""
    root = os.environ.get("GAN_T2I_CACHE")
    if root:
        return Path(root)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gan_t2i"
    except RuntimeError as error:  # a container whose user has neither a name nor $HOME
        raise UsageError("no home folder is known, so there is no place for the cache: set GAN_T2I_CACHE to a folder") from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed to `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes a private file; the finished one gets the permissions that the user's umask asks for.
        temporary.chmod(0o666 & ~_umask())
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def existing_part(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that is there and may be looked into."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if os.path.exists(place))


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """An `atomic_file` that the user named; raises `UsageError` where it cannot be written."""
    try:
        with atomic_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success its files are flushed and it is renamed to `path`.

    Otherwise, and by SIGTERM too, it is removed. Raises FileExistsError where `path` exists and is not empty, before anything is yielded.
    """
    if _is_taken(path):
        raise FileExistsError(f"{path} already exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    with cleanup_on_sigterm():
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            written = [*temporary.rglob("*"), temporary]
            if len(written) > FEW_FILES:
                os.sync()
            else:
                for each in written:
                    _flush(each)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Raise `UsageError` where `folder`, which the user named, is a file, is not empty, or cannot be made."""
    if _is_taken(folder):
        raise UsageError(f"{folder} exists and is not empty; name a new folder, or remove it first")
    check_folder(folder)


def check_folder(path: Path) -> None:
    """Raise `UsageError` where no file or folder `path` can be made, since its folder cannot be written."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UsageError(f"cannot write {path}: {folder} is not a folder that you may write in")


def _is_taken(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files in `folder` that a killed process left; nobody may be writing there."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def slug(text: str, limit: int = 60) -> str:
    """Return `text` as a file name: letters and digits of any script, joined by hyphens, at most `limit` characters of 3 bytes."""
    name = re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:limit]
    # File systems count bytes, 255 a name; rare scripts take 4 a letter.
    return name.encode()[: 3 * limit].decode(errors="ignore").rstrip("-") or "untitled"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
