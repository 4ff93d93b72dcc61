"""Tars: keys, captions, shards by pattern, hostile and damaged files."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data.packing import pack
from gan_t2i.data.readers import read, tars
from gan_t2i.data.readers.tars import expand_braces
from gan_t2i.data.records import BadItems
from gan_t2i.data.settings import DataSettings


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = [("0.png", png()), ("0.txt", b"an apple")]


def make_tar(path: Path, *members: tuple[str | tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in (*GOOD, *members):
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if member.isreg():
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member, b""


@pytest.mark.parametrize(
    ("members", "kinds"),
    [
        ([("../1.png", png()), ("../1.txt", b"x")], ["path outside the folder"] * 2),
        ([("/1.png", png()), ("/1.txt", b"x")], ["path outside the folder"] * 2),
        ([special("1.png", tarfile.SYMTYPE, "/etc/passwd"), ("1.txt", b"x")], ["link in the archive", "caption without image"]),
        ([special("1.png", tarfile.LNKTYPE, "0.png"), ("1.txt", b"x")], ["link in the archive", "caption without image"]),
        ([special("1.png", tarfile.FIFOTYPE), ("1.txt", b"x")], ["link in the archive", "caption without image"]),
        ([special("1.png", tarfile.CHRTYPE), ("1.txt", b"x")], ["link in the archive", "caption without image"]),
        ([("1.png", png())], ["image without caption"]),
        ([("1.txt", b"x")], ["caption without image"]),
        ([("1.png", png()), ("1.txt", b" \n")], ["empty caption"]),
        ([("1.png", png()), ("1.txt", b"caf\xe9")], ["caption not UTF-8"]),
        ([("1.png", png()), ("1.txt", b"x\n" * 600_000)], ["caption too long", "image without caption"]),
        ([("1.png", png()), ("1.jpg", png()), ("1.txt", b"x")], ["duplicate key"]),
        ([("1.png", png()), ("1.txt", b"x"), ("2.cls", b"0"), ("1.txt", b"y")], ["duplicate key"]),
        ([("1.png", png()), ("1.txt", b"x"), ("1.txt", b"y"), ("1.txt", b"z")], ["duplicate key"]),
        ([("1.png", png()), ("1.json", b"{"), ("1.txt", b" ")], ["malformed JSON", "empty caption"]),
    ],
)
def test_a_bad_sample_is_counted_or_refused(tmp_path, members, kinds):
    path = make_tar(tmp_path / "a.tar", *members)
    reading = read(path)
    assert [record.captions for record in reading.records] == [("an apple",)]
    assert [item.kind for item in reading.bad] == kinds
    with pytest.raises(GanT2IError):
        read(path, DataSettings(on_bad="error"))


def test_a_sparse_member_that_expands_is_left_out(tmp_path):
    # The sparse form of PAX: 512 bytes that stand for a terabyte.
    member = tarfile.TarInfo("1.png")
    member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,16"}
    reading = read(make_tar(tmp_path / "a.tar", (member, b"x" * 16)))
    assert [item.kind for item in reading.bad] == ["link in the archive"]


def test_an_image_over_the_cap_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MAX_MEMBER", 1000)
    reading = read(make_tar(tmp_path / "a.tar", ("1.png", b"x" * 1001), ("1.txt", b"big")))
    assert [item.kind for item in reading.bad] == ["archive member over the cap", "caption without image"]


def test_a_tar_cut_off_between_two_members_is_counted(tmp_path):
    path = make_tar(tmp_path / "a.tar", ("1.png", png()), ("1.txt", b"x"))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"1.png\0")])
    reading = read(path)
    assert [record.captions for record in reading.records] == [("an apple",)]
    assert [item.kind for item in reading.bad] == ["damaged archive"]


def test_a_truncated_tar_gives_its_whole_members(tmp_path):
    path = make_tar(tmp_path / "a.tar", ("1.txt", b"a bee"), ("1.png", b"x" * 5000))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"x" * 600) + 700])
    reading = read(path)
    assert [record.captions for record in reading.records] == [("an apple",)]
    assert reading.bad[0].kind == "damaged archive"
    assert "the tar ends within 1.png" in reading.bad[0].why


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0", b"nonsense\0\0\0\0"])
def test_a_hostile_size_ends_the_tar(tmp_path, size):
    path = make_tar(tmp_path / "a.tar", ("1.png", png()), ("1.txt", b"x"))
    content = bytearray(path.read_bytes())
    start = content.index(b"1.png\0")
    header = content[start : start + 512]
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[start : start + 512] = header
    path.write_bytes(content)
    reading = read(path)
    assert [record.captions for record in reading.records] == [("an apple",)]
    assert [item.kind for item in reading.bad] == ["damaged archive"]


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b\x08" + b"\0" * 600])
def test_a_file_that_is_not_a_tar_is_counted(tmp_path, content):
    make_tar(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(content)
    reading = read(tmp_path)
    assert len(reading.records) == 1
    assert [(item.kind, item.where) for item in reading.bad] == [("unreadable archive", "b.tar")]


def test_the_caption_is_the_text_or_a_key_of_the_json(tmp_path):
    members = [("1.png", png("blue")), ("1.json", b'{"caption": "from json", "alt": "other"}'), ("1.txt", b"first\nsecond")]
    path = make_tar(tmp_path / "a.tar", *members)
    assert read(path).records[1].captions == ("first", "second")
    assert read(path, DataSettings(caption_lines="first")).records[1].captions == ("first",)
    reading = read(path, DataSettings(caption_column="alt"))
    assert [record.captions for record in reading.records] == [("other",)]
    assert reading.notes == ['captions from key "alt" of the .json in the tars', "not used in the format tars: .txt 2 (a.tar/0.txt)"]


def test_members_of_a_key_need_not_be_adjacent(tmp_path):
    reading = read(make_tar(tmp_path / "a.tar", ("1.png", png()), ("2.png", png()), ("2.txt", b"two"), ("1.txt", b"one")))
    assert reading.bad == []
    assert [record.captions for record in reading.records] == [("an apple",), ("one",), ("two",)]


def test_a_json_without_a_caption_names_its_texts(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in (("0.png", png()), ("0.json", b'{"url": "u", "size": 3, "alt": ["x"]}')):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(UsageError, match=r"the samples' .json has no column text, caption, prompt or title: .* --caption-column url or alt "):
        read(tmp_path / "a.tar")
    assert read(tmp_path / "a.tar", DataSettings(caption_column="alt")).records[0].captions == ("x",)


def test_only_possible_captions_of_a_json_stay_in_memory():
    content = b'{"caption": "c", "exif": "much", "size": 3, "prompt": ["p"]}'
    assert tars._row(content, None, "a", BadItems()) == {"caption": "c", "exif": "", "prompt": ["p"]}
    assert tars._row(content, "exif", "a", BadItems())["exif"] == "much"


def test_extensions_after_the_first_dot_are_other_pictures(tmp_path):
    reading = read(make_tar(tmp_path / "a.tar", ("d/1.png", png()), ("d/1.mask.png", png()), ("d/1.txt", b"x")))
    assert reading.bad == []
    assert reading.records[1].where == "a.tar/d/1"


def test_names_with_several_dots_are_samples_too(tmp_path):
    members = [("hat v1.5.png", png()), ("hat v1.5.txt", b"a hat"), ("d.x/a.b.c.PNG", png()), ("d.x/a.b.c.caption", b"a bag")]
    members += [("lonely v1.6.png", png()), ("lonely v1.7.txt", b"x")]
    reading = read(make_tar(tmp_path / "a.tar", *members))
    assert [record.captions for record in reading.records] == [("an apple",), ("a hat",), ("a bag",)]
    assert [(item.kind, item.where) for item in reading.bad] == [
        ("image without caption", "a.tar/lonely v1.6"),
        ("caption without image", "a.tar/lonely v1.7"),
    ]
    with pytest.raises(GanT2IError, match=r"a\.tar/lonely v1\.6: "):
        read(tmp_path / "a.tar", DataSettings(on_bad="error"))


def test_every_member_is_used_or_counted(tmp_path):
    strays = ["0.mask.png", "0.cls", "0.json", "0.caption", "0.note.txt", "notes.md", "LICENSE", "x.npy", "phone.heic", "lonely.png"]
    reading = read(make_tar(tmp_path / "a.tar", *((name, b"{}") for name in strays), (".hidden.png", b""), ("._0.png", b"")))
    assert [record.captions for record in reading.records] == [("an apple",)]
    assert sorted((item.kind, item.where) for item in reading.bad) == [
        ("image of a format that is not read", "a.tar/phone.heic"),
        ("image without caption", "a.tar/lonely"),
    ]
    assert len(reading.bad) + reading.unused.total() == len(strays)


def test_a_picture_that_is_not_read_is_said_to_be_one(tmp_path):
    reading = read(make_tar(tmp_path / "a.tar", ("1.heic", b"x"), ("1.txt", b"one"), ("2.heic", b"x"), ("2.jpg", png()), ("2.txt", b"two")))
    assert [record.captions for record in reading.records] == [("an apple",), ("two",)]
    assert [(item.kind, item.why) for item in reading.bad] == [
        ("image of a format that is not read", ".heic is not read: convert it to PNG")
    ] * 2


def test_shard_names_give_the_split_only_with_both_sides(tmp_path):
    make_tar(tmp_path / "train-0000.tar")
    assert [record.split for record in read(tmp_path).records] == [None]
    make_tar(tmp_path / "val-0000.tar")
    assert [record.split for record in read(tmp_path).records] == ["train", "heldout"]


def test_a_missing_shard_is_counted_and_a_pattern_without_shards_is_refused(tmp_path):
    make_tar(tmp_path / "set-00.tar")
    reading = read(tmp_path / "set-{00..02}.tar")
    assert [(item.kind, item.where) for item in reading.bad] == [("missing shard", "set-01.tar"), ("missing shard", "set-02.tar")]
    for pattern in ("nowhere/{0..3}.tar", "../{0..3}/../x.tar", "set-{0..999999}.tar"):
        with pytest.raises(UsageError):
            read(tmp_path / pattern)


@pytest.mark.parametrize("source", ["pipe:cat a.tar", "https://example.org/{0..3}.tar", "s3://bucket/{0..3}.tar"])
def test_nothing_is_fetched_and_no_shell_runs(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read(source)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{8..10}.tar", ["8.tar", "9.tar", "10.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("{a.tar", ["{a.tar"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern, names):
    assert expand_braces(pattern) == names


def test_braces_that_expand_to_nothing_are_refused():
    with pytest.raises(UsageError, match=r"data \{2..1\}.tar expands to no file: 2 is above 1"):
        expand_braces("{2..1}.tar")


def test_json_with_a_duplicate_key_is_counted(tmp_path):
    rows = [b'{"caption": "x", "caption": "y"}', b'{"caption": "z"}']
    members = [member for number, row in enumerate(rows) for member in ((f"{number}x.png", png()), (f"{number}x.json", row))]
    reading = read(make_tar(tmp_path / "a.tar", *members), DataSettings(caption_column="caption"))
    assert [record.captions for record in reading.records] == [("z",)]
    assert ("duplicate key", "a.tar/0x") in [(item.kind, item.where) for item in reading.bad]


def test_names_in_messages_are_safe_for_a_terminal(tmp_path):
    path = make_tar(tmp_path / "a.tar", ("e\x1b[2J.png", b"no picture"), ("e\x1b[2J.txt", b"a caption"))
    report = pack(path, tmp_path / "packed", 16, progress=False).report
    assert str(report).isascii()
    assert report.first_bad[0][0] == "a.tar/e\\x1b[2J (e\\x1b[2J.png)"


def test_a_picture_in_a_tar_is_checked_like_a_file(tmp_path):
    path = make_tar(tmp_path / "a.tar", ("1.png", png()[:45]), ("1.txt", b"cut"), ("2.jpg", png()), ("2.txt", b"mislabelled"))
    dataset = pack(path, tmp_path / "packed", 16, progress=False)
    assert dataset.captions == ["an apple", "mislabelled"]
    assert dataset.report.bad == {"unreadable image": 1}
    assert dataset.report.first_bad[0][0] == "a.tar/1 (1.png)"
