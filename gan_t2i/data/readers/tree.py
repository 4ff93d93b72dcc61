"""Where a reader finds files: a folder, or a zip that is read as one. Nothing outside is ever opened, and no archive is unpacked by name."""

import copy
import functools
import os
import shutil
import stat
import tempfile
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Protocol

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.records import BadItems, LazyFile

OUTSIDE = "path outside the folder"
MISSING = "missing image"
TOO_LARGE = "archive member over the cap"
MAX_MEMBER = 1 << 28  # bytes of a picture or a table in an archive, unpacked
MAX_NESTED = 1 << 34  # bytes of a tar or parquet file in a zip, which is copied to a temporary file


class Rejected(Exception):
    """A file that is not to be used: the kind of its bad item, and why, to be put behind the file's name."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


class FileSource(Protocol):
    """Files by their relative name, with slashes."""

    def names(self) -> list[str]:
        """All, sorted, without hidden ones."""

    def is_file(self, name: str) -> bool:
        """Whether `name` is there and may be used."""

    def picture(self, name: str) -> Path | LazyFile:
        """The picture `name`; raises `Rejected`."""

    def read(self, name: str, cap: int) -> bytes:
        """The first `cap` + 1 bytes of a file; raises `Rejected`."""

    def local(self, name: str) -> Path:
        """A seekable file with the content of `name`, which lives as long as the tree; raises `Rejected`."""

    def below(self, folder: str) -> "FileSource":
        """The tree of a folder in this one; an empty name is this one."""


def is_unsafe(name: str) -> bool:
    """Whether a name is absolute, a URL, a drive, or has ``..``."""
    if ":" not in name and ".." not in name and not name.startswith(("/", "\\")):
        return False  # as nearly every name of a data set, and said ten times as fast
    # The Windows reading of a name knows both slashes, drives and shares.
    parts = PureWindowsPath(name)
    return bool("://" in name or parts.drive or parts.root or ".." in parts.parts)


def inside(root: str, name: str) -> str | None:
    """The file `name` below `root` (which must be resolved), or None where it is unsafe or leads out through a link."""
    if is_unsafe(name):
        return None
    path = root
    for part in name.replace(os.sep, "/").split("/"):
        path = os.path.join(path, part)
        # Without links, a name that leads nowhere up stays below; to follow the whole path for each picture takes a tenth of packing.
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            break
        if is_link:
            # Path.resolve raises on a loop of links, realpath does not.
            if not Path(os.path.realpath(os.path.join(root, name))).is_relative_to(root):
                return None
            break
    return os.path.join(root, name)


def files_below(root: Path) -> Iterator[str]:
    """Relative names (with /) of the files below `root`, without hidden ones, without following links to folders, and without the grids
    of a training run that stands among the pictures."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_run(Path(folder, name))]
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + name for name in names if not name.startswith("."))


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "grids").is_dir()


class FolderTree:
    """A folder on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._top = os.fspath(self.root)

    @functools.cached_property
    def _names(self) -> list[str]:
        return sorted(files_below(self.root))

    def names(self) -> list[str]:
        return self._names

    def is_file(self, name: str) -> bool:
        try:
            self.local(name)
        except Rejected:
            return False
        return True

    def local(self, name: str) -> Path:
        try:
            path = inside(self._top, name)
            is_file = path is not None and os.path.isfile(path)
        except (OSError, ValueError) as error:  # a name that no file can have: too long, with a NUL, not encodable
            raise Rejected(MISSING, f"cannot be opened: {error}") from error
        if path is None:
            raise Rejected(OUTSIDE, "leads out of the folder")
        if not is_file:
            raise Rejected(MISSING, "does not exist")
        return Path(path)

    def picture(self, name: str) -> Path | LazyFile:
        return self.local(name)

    def read(self, name: str, cap: int) -> bytes:
        try:
            with open(self.local(name), "rb") as file:
                return file.read(cap + 1)
        except OSError as error:
            raise Rejected("unreadable file", f"cannot be read: {error.strerror}") from error

    def below(self, folder: str) -> "FolderTree":
        return FolderTree(self.root / folder) if folder else self


class _Scratch:
    """A temporary folder, made when asked for, that goes with the last user of this object."""

    @functools.cached_property
    def folder(self) -> Path:
        path = Path(tempfile.mkdtemp(prefix="gan_t2i-"))
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        return path


class ZipTree:
    """The files of a zip. Members that are unsafe, links or named twice go to `bad` and are not there."""

    def __init__(self, path: Path, bad: BadItems) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        # A damaged directory makes zipfile raise more than its own error.
        except Exception as error:
            raise GanT2IError(f"data {path} is no readable zip: {' '.join(str(error).split())}") from error
        self._members = _usable_members(self._zip, bad)
        self._prefix = _common_folder(self._members)
        self._scratch = _Scratch()

    def below(self, folder: str) -> "ZipTree":
        if not folder:
            return self
        view = copy.copy(self)
        view._prefix = f"{self._prefix}{folder}/"
        return view

    def names(self) -> list[str]:
        return sorted(name.removeprefix(self._prefix) for name in self._members if name.startswith(self._prefix))

    def is_file(self, name: str) -> bool:
        return self._prefix + name in self._members

    def _member(self, name: str, cap: int) -> zipfile.ZipInfo:
        if is_unsafe(name):
            raise Rejected(OUTSIDE, "leads out of the archive")
        member = self._members.get(self._prefix + os.path.normpath(name).replace("\\", "/"))
        if member is None:
            raise Rejected(MISSING, "does not exist")
        if member.file_size > cap:
            raise Rejected(TOO_LARGE, f"unpacks to {member.file_size} bytes, more than {cap}")
        return member

    def picture(self, name: str) -> Path | LazyFile:
        # zipfile reads no more than the size that was checked, whatever the member holds.
        return LazyFile(name, functools.partial(self._zip.read, self._member(name, MAX_MEMBER)))

    def read(self, name: str, cap: int) -> bytes:
        member = self._member(name, MAX_MEMBER)
        try:
            with self._zip.open(member) as file:
                return file.read(cap + 1)
        except Exception as error:  # zlib.error, NotImplementedError, RuntimeError, ...
            raise Rejected("unreadable file", f"cannot be unpacked: {error}") from error

    def local(self, name: str) -> Path:
        member = self._member(name, MAX_NESTED)
        target = self._scratch.folder / f"{member.header_offset}"
        try:
            with self._zip.open(member) as packed, open(target, "wb") as file:
                shutil.copyfileobj(packed, file)
        except Exception as error:
            raise Rejected("unreadable file", f"cannot be unpacked: {error}") from error
        return target


def _usable_members(archive: zipfile.ZipFile, bad: BadItems) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    refused: set[str] = set()
    for member in archive.infolist():
        name = os.path.normpath(member.filename).replace("\\", "/")
        where = member.filename.encode("utf-8", "backslashreplace").decode()
        if member.filename.endswith("/") or name.startswith("__MACOSX/"):
            continue
        if is_unsafe(member.filename) or not member.filename:
            bad.add(OUTSIDE, where, "the member's name leads out of the archive")
        elif stat.S_ISLNK(member.external_attr >> 16):
            bad.add("link in the archive", where, "the member is a link")
        elif name in members or name in refused:
            # Which of the two is meant, nobody knows; readers and unpackers differ.
            bad.add("duplicate name in the archive", where, "two members have this name, so neither is used")
            members.pop(name, None)
            refused.add(name)
        elif not any(part.startswith(".") for part in name.split("/")):
            members[name] = member
    return members


def _common_folder(names: dict[str, zipfile.ZipInfo]) -> str:
    """The folder with a slash that holds everything, as many tools pack one, or ''."""
    tops = {name.partition("/")[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""
