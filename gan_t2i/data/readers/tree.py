"""Sources of files for readers: a folder, or a zip that is read as one.

A folder's links are followed, as its user made them; a name with ``..`` leads nowhere, and an archive's links are refused. No archive is
unpacked by name.
"""

import abc
import copy
import functools
import os
import shutil
import stat
import tempfile
import unicodedata
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Self

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.records import BadItems, LazyFile

OUTSIDE = "path outside the folder"
MISSING = "missing image"
TOO_LARGE = "archive member over the cap"
MAX_MEMBER = 1 << 28  # bytes of a picture or a table in an archive, unpacked
MAX_NESTED = 1 << 34  # bytes of a tar or parquet file in a zip, which is copied to a temporary file


class Rejected(Exception):
    """A file that must not be used: the kind of its bad item, and the reason, which follows the file's name in messages."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


def is_unsafe(name: str) -> bool:
    """Return True for a name that is absolute, a URL or a drive, or contains ``..``."""
    if ":" not in name and ".." not in name and not name.startswith(("/", "\\")):
        return False  # nearly every name of a data set; this check is ten times as fast
    # a Windows path covers both slashes, drives and shares
    parts = PureWindowsPath(name)
    return bool("://" in name or parts.drive or parts.root or ".." in parts.parts)


def plain(name: str) -> str:
    """Return the spelling that stands for all of a name: with either slash, and accents composed (as on Windows) or decomposed (on a Mac)."""
    return unicodedata.normalize("NFC", os.path.normpath(name.replace("\\", "/")))


def by_plain_name(names: Iterable[str]) -> dict[str, str]:
    """Return the names by their plain spelling; of several with the same one, the first counts."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(plain(name), name)
    return found


def files_below(root: Path, onerror: Callable[[OSError], object] | None = None) -> Iterator[str]:
    """Yield relative names (with /) of the files below `root`, without hidden files, and the grids of a training run that lies among the
    pictures.

    A folder that is a link is followed after those that are none, unless it contains the link; so each folder is read once, and there are no
    circles. `onerror` is called for a folder that cannot be listed.
    """
    seen: set[str] = set()
    waiting = [str(root)]
    for start in waiting:  # grows by the links that are found
        for folder, folders, names in os.walk(start, onerror=onerror):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_run(Path(folder, name)))
            links = [path for path in (os.path.join(folder, name) for name in folders) if os.path.islink(path)]
            waiting += [path for path in links if not Path(real).is_relative_to(os.path.realpath(path))]
            below = os.path.relpath(folder, root)
            prefix = "" if below == "." else below.replace(os.sep, "/") + "/"
            yield from (prefix + name for name in names if not name.startswith("."))


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "grids").is_dir()


class FileSource(abc.ABC):
    """Files by their relative names, with slashes. It knows which of them a reader has asked for."""

    def __init__(self, place: str, asked: set[str] | None = None) -> None:
        self._place = place  # what stands before each name
        self.asked = set() if asked is None else asked  # names with their places; the sources of folders in this one share it
        self.unlisted: dict[str, str] = {}  # folders that cannot be listed, and the reasons

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of all files, sorted, without hidden ones."""
        return sorted(self._list())

    @functools.cached_property
    def _by_plain_name(self) -> dict[str, str]:
        return by_plain_name(self.names)

    def below(self, folder: str) -> Self:
        """Return the source of a folder in this one; an empty name gives this one."""
        if not folder:
            return self
        view = copy.copy(self)
        view._place = f"{self._place}{folder}/"
        for cached in ("names", "_by_plain_name"):
            view.__dict__.pop(cached, None)
        return view

    def find(self, name: str) -> str:
        """Return the name of the file that `name` means, in whatever spelling; raises `Rejected`."""
        if is_unsafe(name):
            raise Rejected(OUTSIDE, "leads out of the folder")
        found = os.path.normpath(name)
        if not self._has(found):
            found = self._by_plain_name.get(plain(found), found)
        self.ask_for(found)
        if not self._has(found):
            raise Rejected(MISSING, "does not exist")
        return found

    def is_file(self, name: str) -> bool:
        """Return True if `name` exists and may be used."""
        return not is_unsafe(name) and self._has(name)

    def ask_for(self, name: str) -> None:
        """Note that the reader uses the file `name`, or counts it."""
        self.asked.add(self._place + name)

    def not_asked_for(self) -> list[str]:
        """Return the names of the files that no reader has asked for."""
        return [name for name in self.names if self._place + name not in self.asked]

    def forget(self) -> None:
        """Forget what has been asked for, before another reader begins."""
        self.asked.clear()

    @abc.abstractmethod
    def _list(self) -> Iterable[str]: ...

    @abc.abstractmethod
    def _has(self, name: str) -> bool: ...

    @abc.abstractmethod
    def picture(self, name: str) -> Path | LazyFile:
        """Return the picture `name`; raises `Rejected`."""

    @abc.abstractmethod
    def read(self, name: str, cap: int) -> bytes:
        """Return the first `cap` + 1 bytes of a file; raises `Rejected`."""

    @abc.abstractmethod
    def local(self, name: str) -> Path:
        """Return a seekable file with the content of `name`, which exists as long as the source; raises `Rejected`."""


class FolderTree(FileSource):
    """The files of a folder on disk."""

    def __init__(self, root: Path, asked: set[str] | None = None) -> None:
        super().__init__(f"{root.absolute()}/", asked)

    def _list(self) -> Iterator[str]:
        return files_below(Path(self._place), self._cannot_list)

    def _cannot_list(self, error: OSError) -> None:
        self.unlisted[os.path.relpath(error.filename, self._place)] = f"the folder cannot be listed: {error.strerror}"

    def _has(self, name: str) -> bool:
        try:
            return os.path.isfile(self._place + name)
        except ValueError:  # a name that no file can have
            return False

    def local(self, name: str) -> Path:
        return Path(self._place + self.find(name))

    def picture(self, name: str) -> Path:
        return self.local(name)

    def read(self, name: str, cap: int) -> bytes:
        try:
            with open(self.local(name), "rb") as file:
                return file.read(cap + 1)
        except OSError as error:
            raise Rejected("unreadable file", f"cannot be read: {error.strerror}") from error


class ZipTree(FileSource):
    """The files of a zip. Members that are unsafe, links or named twice go to `bad` and are left out."""

    def __init__(self, path: Path, bad: BadItems) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        # on a damaged directory zipfile raises other errors than its own
        except Exception as error:
            raise GanT2IError(f"data {path} is not a readable zip: {' '.join(str(error).split())}") from error
        self._members = _usable_members(self._zip, bad)
        super().__init__(_common_folder(self._members))

    @functools.cached_property
    def _scratch(self) -> Path:
        """A temporary folder, removed with the zip, which the trees of its folders share."""
        path = Path(tempfile.mkdtemp(prefix="gan_t2i-"))
        weakref.finalize(self._zip, shutil.rmtree, path, ignore_errors=True)
        return path

    def _list(self) -> Iterator[str]:
        return (name.removeprefix(self._place) for name in self._members if name.startswith(self._place))

    def _has(self, name: str) -> bool:
        return self._place + name in self._members

    def _member(self, name: str, cap: int) -> zipfile.ZipInfo:
        member = self._members[self._place + self.find(name)]
        if member.file_size > cap:
            raise Rejected(TOO_LARGE, f"unpacks to {member.file_size} bytes, more than {cap}")
        return member

    def picture(self, name: str) -> LazyFile:
        # zipfile reads at most the size that was checked, whatever the member contains
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
        target = self._scratch / f"{member.header_offset}"
        try:
            with self._zip.open(member) as packed, open(target, "wb") as file:
                shutil.copyfileobj(packed, file)
        except Exception as error:
            raise Rejected("unreadable file", f"cannot be unpacked: {error}") from error
        return target


def _usable_members(archive: zipfile.ZipFile, bad: BadItems) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    duplicates: set[str] = set()
    for member in archive.infolist():
        name = os.path.normpath(_name_in_utf8(member)).replace("\\", "/")
        where = member.filename.encode("utf-8", "backslashreplace").decode()
        if member.filename.endswith("/") or name.startswith("__MACOSX/"):
            continue
        if is_unsafe(member.filename) or not member.filename:
            bad.add(OUTSIDE, where, "the member's name leads out of the archive")
        elif stat.S_ISLNK(member.external_attr >> 16):
            bad.add("link in the archive", where, "the member is a link")
        elif name in members or name in duplicates:
            # it is ambiguous which one counts: readers and unpackers differ
            for _ in range(1 if name in duplicates else 2):
                bad.add("duplicate name in the archive", where, "several members have this name, so none is used")
            members.pop(name, None)
            duplicates.add(name)
        elif not any(part.startswith(".") for part in name.split("/")):
            members[name] = member
    return members


def _name_in_utf8(member: zipfile.ZipInfo) -> str:
    """Return the member's name, read as UTF-8 where it can be: a Mac writes that without the flag which says so."""
    try:
        return member.filename if member.flag_bits & 0x800 else member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


def _common_folder(names: dict[str, zipfile.ZipInfo]) -> str:
    """Return the folder, with a slash, that contains everything, as many tools pack it, or ''."""
    tops = {name.partition("/")[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""
