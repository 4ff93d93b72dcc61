"""A zip read as a folder: refused members, and nothing unpacked to the disk."""

import io
import stat
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.packing import pack
from gan_t2i.data.readers import read, tree
from gan_t2i.data.settings import DataSettings


def png(colour: str = "red", size: tuple[int, int] = (16, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = {"a.png": png(), "a.txt": b"an apple"}


def make_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (*GOOD.items(), *members):
            archive.writestr(name, content)
    return path


def link(name: str, target: bytes) -> tuple[zipfile.ZipInfo, bytes]:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member, target


@pytest.mark.parametrize(
    ("member", "kind", "where"),
    [
        (("../b.png", png()), "path outside the folder", "../b.png"),
        (("/tmp/b.png", png()), "path outside the folder", "/tmp/b.png"),
        (("..\\b.png", png()), "path outside the folder", "../b.png"),
        (("x/../../b.png", png()), "path outside the folder", "x/../../b.png"),
        (("https://example.org/b.png", png()), "path outside the folder", "https://example.org/b.png"),
        (link("b.png", b"/etc/passwd"), "link in the archive", "b.png"),
    ],
)
def test_a_member_outside_the_folder_is_counted_or_refused(tmp_path, member, kind, where):
    # zipfile itself turns backslashes round on Windows alone.
    path = make_zip(tmp_path / "a.zip", member, ("b.txt", b"a bee"))
    reading = read(path)
    assert [record.captions for record in reading.records] == [("an apple",)]
    assert (reading.bad[0].kind, reading.bad[0].where.replace("\\", "/")) == (kind, where)
    with pytest.raises(GanT2IError, match="the member"):
        read(path, DataSettings(on_bad="error"))


def test_names_in_a_zipped_table_cannot_leave_the_zip(tmp_path):
    rows = b'{"file_name": "../a.png", "text": "x"}\n{"file_name": "/a.png", "text": "x"}\n{"file_name": "a.png", "text": "apple"}'
    reading = read(make_zip(tmp_path / "a.zip", ("metadata.jsonl", rows)))
    assert [record.captions for record in reading.records] == [("apple",)]
    assert [item.kind for item in reading.bad] == ["path outside the folder"] * 2


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_with_the_same_name_are_both_left_out(tmp_path):
    reading = read(make_zip(tmp_path / "a.zip", ("b.png", png()), ("b.txt", b"one"), ("b.txt", b"two")))
    assert [record.captions for record in reading.records] == [("an apple",)]
    assert [(item.kind, item.where) for item in reading.bad] == [
        ("duplicate name in the archive", "b.txt"),
        ("duplicate name in the archive", "b.txt"),
        ("image without caption", "b.png"),
    ]


def test_a_member_that_expands_past_the_cap_is_never_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "MAX_MEMBER", 10_000)
    path = make_zip(tmp_path / "a.zip", ("b.png", b"\0" * 1_000_000), ("b.txt", b"zeros"))
    assert path.stat().st_size < 5000
    reading = read(path)
    assert [(item.kind, item.where) for item in reading.bad] == [("archive member over the cap", "b.png")]
    assert "unpacks to 1000000 bytes, more than 10000" in reading.bad[0].why
    assert len(reading.records) == 1


def test_a_member_that_understates_its_size_is_cut_off(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "a.zip", ("b.png", b"\0" * 1_000_000), ("b.txt", b"zeros"))
    content = path.read_bytes()
    assert content.count(struct.pack("<I", 1_000_000)) == 2  # in the member's header and in the directory
    path.write_bytes(content.replace(struct.pack("<I", 1_000_000), struct.pack("<I", 100)))
    read_sizes = []
    original = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, member: read_sizes.append(len(original(self, member))) or original(self, member))
    dataset = pack(path, tmp_path / "packed", 16, progress=False)
    assert dataset.captions == ["an apple"]
    assert dataset.report.bad == {"unreadable image": 1}
    assert max(read_sizes) < 200


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + b"\0" * 100, b"PK\x05\x06" + b"\xff" * 18])
def test_a_file_that_is_not_a_zip_is_refused_with_one_sentence(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(GanT2IError, match=r"a.zip is not a readable zip: "):
        read(tmp_path / "a.zip")


def test_a_damaged_member_spoils_no_other(tmp_path):
    path = make_zip(tmp_path / "a.zip", ("b.png", png("blue")), ("b.txt", b"blue"))
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("b.png").header_offset
    content = bytearray(path.read_bytes())
    content[start + 40 : start + 60] = b"\xff" * 20
    path.write_bytes(content)
    dataset = pack(path, tmp_path / "packed", 16, progress=False)
    assert dataset.captions == ["an apple"]
    assert dataset.report.bad == {"unreadable image": 1}


def test_a_tar_in_a_zip_leaves_no_temporary_file(tmp_path, monkeypatch):
    import tarfile

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in GOOD.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.tar", "set/a.tar")
    reading = read(tmp_path / "a.zip")
    assert len(list((tmp_path / "scratch").rglob("*"))) == 2  # the folder and the tar, as long as the records need it
    assert reading.records[0].image.read() == GOOD["a.png"]
    del reading
    assert list((tmp_path / "scratch").iterdir()) == []
