"""Sources of files for readers: a folder, or a zip that is read as one. Nothing outside is opened, and no archive is unpacked by name."""

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


def inside(root: str, name: str) -> str | None:
    """Return the file `name` below `root` (which must be resolved), or None where it is unsafe or leads out through a link."""
    if is_unsafe(name):
        return None
    path = root
    for part in name.replace(os.sep, "/").split("/"):
        path = os.path.join(path, part)
        # without links, a name without .. stays below; resolving the whole path of each picture takes a tenth of packing
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            break
        if is_link:
            # Path.resolve raises on a loop of links, realpath does not
            if not Path(os.path.realpath(os.path.join(root, name))).is_relative_to(root):
                return None
            break
    return os.path.join(root, name)


def files_below(root: Path) -> Iterator[str]:
    """Yield relative names (with /) of the files below `root`, without hidden files, links to folders, and the grids of a training run that
    lies among the pictures."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_run(Path(folder, name))]
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + name for name in names if not name.startswith("."))


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "grids").is_dir()


class FolderTree:
    """The files of a folder on disk, by their relative name, with slashes."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of all files, sorted, without hidden ones."""
        return sorted(files_below(self.root))

    def is_file(self, name: str) -> bool:
        """Return True if `name` exists and may be used."""
        try:
            self.local(name)
        except Rejected:
            return False
        return True

    def local(self, name: str) -> Path:
        """Return a seekable file with the content of `name`, which exists as long as the tree; raises `Rejected`."""
        try:
            path = inside(os.fspath(self.root), name)
            is_file = path is not None and os.path.isfile(path)
        except (OSError, ValueError) as error:  # an impossible file name: too long, with a NUL, not encodable
            raise Rejected(MISSING, f"cannot be opened: {error}") from error
        if path is None:
            raise Rejected(OUTSIDE, "leads out of the folder")
        if not is_file:
            raise Rejected(MISSING, "does not exist")
        return Path(path)

    def picture(self, name: str) -> Path | LazyFile:
        """Return the picture `name`; raises `Rejected`."""
        return self.local(name)

    def read(self, name: str, cap: int) -> bytes:
        """Return the first `cap` + 1 bytes of a file; raises `Rejected`."""
        try:
            with open(self.local(name), "rb") as file:
                return file.read(cap + 1)
        except OSError as error:
            raise Rejected("unreadable file", f"cannot be read: {error.strerror}") from error

    def below(self, folder: str) -> "FolderTree":
        """Return the source of a folder in this one; an empty name gives this one."""
        return FolderTree(self.root / folder) if folder else self


class ZipTree:
    """The files of a zip, with the methods of `FolderTree`. Members that are unsafe, links or named twice go to `bad` and are left out."""

    def __init__(self, path: Path, bad: BadItems) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        # on a damaged directory zipfile raises other errors than its own
        except Exception as error:
            raise GanT2IError(f"data {path} is not a readable zip: {' '.join(str(error).split())}") from error
        self._members = _usable_members(self._zip, bad)
        self._prefix = _common_folder(self._members)

    @functools.cached_property
    def _scratch(self) -> Path:
        """A temporary folder, removed with the zip, which the trees of its folders share."""
        path = Path(tempfile.mkdtemp(prefix="gan_t2i-"))
        weakref.finalize(self._zip, shutil.rmtree, path, ignore_errors=True)
        return path

    def below(self, folder: str) -> "ZipTree":
        if not folder:
            return self
        view = copy.copy(self)
        view._prefix = f"{self._prefix}{folder}/"
        return view

    @property
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


FileSource = FolderTree | ZipTree


def _usable_members(archive: zipfile.ZipFile, bad: BadItems) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    duplicates: set[str] = set()
    for member in archive.infolist():
        name = os.path.normpath(member.filename).replace("\\", "/")
        where = member.filename.encode("utf-8", "backslashreplace").decode()
        if member.filename.endswith("/") or name.startswith("__MACOSX/"):
            continue
        if is_unsafe(member.filename) or not member.filename:
            bad.add(OUTSIDE, where, "the member's name leads out of the archive")
        elif stat.S_ISLNK(member.external_attr >> 16):
            bad.add("link in the archive", where, "the member is a link")
        elif name in members or name in duplicates:
            # it is ambiguous which one counts: readers and unpackers differ
            bad.add("duplicate name in the archive", where, "two members have this name, so neither is used")
            members.pop(name, None)
            duplicates.add(name)
        elif not any(part.startswith(".") for part in name.split("/")):
            members[name] = member
    return members


def _common_folder(names: dict[str, zipfile.ZipInfo]) -> str:
    """Return the folder, with a slash, that contains everything, as many tools pack it, or ''."""
    tops = {name.partition("/")[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""
