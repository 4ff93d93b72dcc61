import contextlib
import os
import pwd
import stat

import pytest

from gan_t2i.core.errors import UsageError
from gan_t2i.core.files import atomic_file, atomic_folder, cache_dir, slug


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_only_at_the_end(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_file(path) as temporary:
        assert temporary.parent == path.parent  # a rename across disks would not be atomic
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["file.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with contextlib.suppress(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("power cut")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (events.append("rename"), replace(self, target))[1])
    with atomic_file(tmp_path / "file.txt") as temporary:
        temporary.write_text("x")
    assert events == ["fsync", "rename", "fsync"]  # the file, and then the folder that names it


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "file.txt") as temporary:
            temporary.write_text("x")
        with atomic_folder(tmp_path / "folder"):
            pass
        assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o640
        assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750
        assert os.umask(0o027) == 0o027, "the umask was left as it was"
    finally:
        os.umask(old)


def test_a_folder_appears_whole_and_only_at_the_end(tmp_path):
    path = tmp_path / "deep" / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").write_text("a")
        assert not path.exists()
    assert (path / "sub" / "a").read_text() == "a"
    assert names(path.parent) == ["folder"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("a")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_folder_never_replaces_anything_but_an_empty_one(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        with pytest.raises(FileExistsError, match=f"{name} already exists"), atomic_folder(tmp_path / name):
            pytest.fail("it was yielded")
    with atomic_folder(tmp_path / "empty") as temporary:
        (temporary / "a").write_text("a")
    assert names(tmp_path / "empty") == ["a"]
    assert names(tmp_path) == ["empty", "file", "full"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A red heart, above a blue star!", "a-red-heart-above-a-blue-star"),
        ("红色圆形 / 在左边", "红色圆形-在左边"),
        ("../../etc/passwd", "etc-passwd"),
        ("under_score", "under-score"),
        ("!?", "untitled"),
        ("", "untitled"),
        ("x" * 99, "x" * 60),
        ("x" * 59 + " yes", "x" * 59),
    ],
)
def test_slugs(text, wanted):
    assert slug(text) == wanted


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.setenv("GAN_T2I_CACHE", "")
    assert cache_dir() == tmp_path / "xdg" / "gan_t2i"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "gan_t2i"


def test_without_a_home_the_cache_asks_for_a_folder(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "GAN_T2I_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def getpwuid(uid):
        raise KeyError(uid)  # a container run with --user 12345

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    with pytest.raises(UsageError, match="set GAN_T2I_CACHE"):
        cache_dir()
