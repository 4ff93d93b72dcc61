"""The same file under another name: links, accents composed or decomposed, either slash."""

import io
import json
import os
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.packing import load_dataset
from gan_t2i.data.readers import files_of, read
from gan_t2i.data.settings import DataSettings

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def captions(reading):
    return sorted(record.captions[0] for record in reading.records)


def write_pair(folder: Path, stem: str) -> Path:
    return write(folder, {f"{stem}.png": png(), f"{stem}.txt": stem.encode()})


# Links


def test_pictures_and_captions_behind_links_are_read(tmp_path):
    write_pair(tmp_path / "real", "a")
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.png", "a.txt"):
        (folder / name).symlink_to(Path("..", "real", name))
    reading = read(folder)
    assert captions(reading) == ["a"]
    assert reading.bad == []


def test_a_folder_in_the_layout_of_the_hub_cache_is_read(tmp_path):
    write(tmp_path / "blobs", {"12ab": png(), "34cd": b'{"file_name": "a.png", "text": "apple"}'})
    snapshot = tmp_path / "snapshots" / "5678"
    (snapshot / "train").mkdir(parents=True)
    for name, blob in (("a.png", "12ab"), ("metadata.jsonl", "34cd")):
        (snapshot / "train" / name).symlink_to(Path("..", "..", "..", "blobs", blob))
    assert captions(read(snapshot)) == ["apple"]
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text("5678")
    write_pair(tmp_path / "snapshots" / "9999", "another revision")
    assert captions(read(tmp_path)) == ["apple"]
    (tmp_path / "refs" / "main").unlink()
    os.utime(snapshot, (0, 0))
    assert captions(read(tmp_path)) == ["another revision"]  # the newest


@pytest.mark.parametrize("name", ["a.tar", "metadata.jsonl"])
def test_a_named_file_may_be_a_link(tmp_path, name):
    write(tmp_path / "data", {"a.png": png(), "a.txt": b"apple", "elsewhere": b'{"file_name": "a.png", "text": "apple"}'})
    if name == "a.tar":
        with tarfile.open(tmp_path / "data" / "elsewhere", "w") as archive:
            for member in ("a.png", "a.txt"):
                archive.add(tmp_path / "data" / member, member)
    (tmp_path / "data" / name).symlink_to(tmp_path / "data" / "elsewhere")
    assert captions(read(tmp_path / "data" / name)) == ["apple"]


def test_folders_behind_links_are_read_once(tmp_path):
    write_pair(tmp_path / "data" / "here", "a")
    write_pair(tmp_path / "other", "b")
    write_pair(tmp_path, "outside")
    links = {"data/b": "other", "data/again": "other", "data/circle": "data", "data/up": ".", "other/back": "data", "data/first": "data/here"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target, target_is_directory=True)
    reading = read(tmp_path / "data")
    assert captions(reading) == ["a", "b"]
    assert [record.where for record in reading.records] == ["again/b.txt", "here/a.txt"]  # a link comes after folders, by name
    assert reading.bad == []
    assert reading.unused.total() == 0


def test_a_table_may_name_pictures_behind_links_but_not_above(tmp_path):
    write(tmp_path / "other", {"a.png": png()})
    rows = [{"file_name": f"{folder}/a.png", "text": folder} for folder in ("link", "link/../other", "../other")]
    folder = write(tmp_path / "data", {"metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    (folder / "link").symlink_to(tmp_path / "other", target_is_directory=True)
    reading = read(folder)
    assert captions(reading) == ["link"]
    assert [item.kind for item in reading.bad] == ["path outside the folder"] * 2


def test_a_change_behind_a_link_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path / "cache"))
    write_pair(tmp_path / "other", "a")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "other", target_is_directory=True)
    assert {Path(name).name for name in files_of(tmp_path / "data", DataSettings())} == {"a.png", "a.txt"}
    first = load_dataset(tmp_path / "data", 16, progress=False)
    write_pair(tmp_path / "other", "b")
    assert len(load_dataset(tmp_path / "data", 16, progress=False)) == len(first) + 1


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path, monkeypatch):
    write_pair(tmp_path, "a")
    write_pair(tmp_path / "closed", "b")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    reading = read(tmp_path)
    assert captions(reading) == ["a"]
    assert [(item.kind, item.where, item.why) for item in reading.bad] == [
        ("unreadable folder", "closed", "the folder cannot be listed: Permission denied")
    ]
    with pytest.raises(GanT2IError, match=r"^closed: the folder cannot be listed"):
        read(tmp_path, DataSettings(on_bad="error"))


# Spellings


def in_files(stored: str, named: str) -> dict[str, bytes]:
    return {f"{stored}.png": png(), f"{named}.txt": b"a cup"}


def in_table(stored: str, named: str) -> dict[str, bytes]:
    return {f"{stored}.png": png(), "metadata.jsonl": json.dumps({"file_name": f"{named}.png", "text": "a cup"}).encode()}


def in_csv(stored: str, named: str) -> dict[str, bytes]:
    return {f"{stored}.png": png(), "list.csv": f"filepath\ttitle\n{named}.png\ta cup\n".encode()}


def in_coco(stored: str, named: str) -> dict[str, bytes]:
    content = {"images": [{"id": 1, "file_name": f"{named}.png"}], "annotations": [{"image_id": 1, "caption": "a cup"}]}
    return {f"{stored}.png": png(), "captions_all.json": json.dumps(content).encode()}


def in_labels(stored: str, named: str) -> dict[str, bytes]:
    return {f"{stored}.png": png(), "dataset.json": json.dumps({"labels": [[f"{named}.png", "a cup"]]}).encode()}


SPELLINGS = [
    (COMPOSED, DECOMPOSED),
    (DECOMPOSED, COMPOSED),
    ("sub/a", "sub\\a"),
    ("sub/" + COMPOSED, "sub\\" + DECOMPOSED),
    ("sub/a", "./sub//a"),
]


CASES = [(make, *spelling) for make in (in_table, in_csv, in_coco, in_labels) for spelling in SPELLINGS]
CASES += [(in_files, *spelling) for spelling in SPELLINGS[:-1]]


@pytest.mark.parametrize(("make", "stored", "named"), CASES, ids=[f"{make.__name__}-{named!a}" for make, _, named in CASES])
def test_a_picture_is_found_by_any_spelling_of_its_name(tmp_path, make, stored, named):
    files = make(stored, named)
    for source in (write(tmp_path / "data", files), zip_of(tmp_path / "a.zip", files)):
        reading = read(source)
        assert captions(reading) == ["a cup"]
        assert reading.bad == []
        assert reading.unused.total() == 0


@pytest.mark.parametrize(("stored", "named"), SPELLINGS)
def test_members_of_a_tar_belong_together_by_any_spelling(tmp_path, stored, named):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in in_files(stored, named).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    reading = read(tmp_path / "a.tar")
    assert captions(reading) == ["a cup"]
    assert reading.bad == []


def test_a_zip_of_a_mac_does_not_say_that_its_names_are_utf8(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile.ZipInfo, "_encodeFilenameFlags", lambda self: (self.filename.encode("utf-8"), self.flag_bits & ~0x800))
    path = zip_of(tmp_path / "a.zip", in_table(DECOMPOSED, COMPOSED))
    with zipfile.ZipFile(path) as archive:
        assert DECOMPOSED + ".png" not in archive.namelist()
    assert captions(read(path)) == ["a cup"]


def test_two_files_whose_names_look_the_same_keep_their_own_captions(tmp_path):
    files = {f"{name}.{suffix}": content for name in (COMPOSED, DECOMPOSED) for suffix, content in (("png", png()), ("txt", name.encode()))}
    reading = read(write(tmp_path, files))
    assert captions(reading) == sorted((COMPOSED, DECOMPOSED))


def test_the_rows_of_a_picture_in_several_spellings_are_its_captions(tmp_path):
    rows = [{"file_name": name, "text": f"caption {number}"} for number, name in enumerate(("a.png", "./a.png", ".\\a.png"))]
    reading = read(write(tmp_path, {"a.png": png(), "metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()}))
    assert [record.captions for record in reading.records] == [("caption 0", "caption 1", "caption 2")]
