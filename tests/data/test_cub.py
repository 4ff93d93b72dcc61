"""CUB in AttnGAN's layout, and pickles that are more than a list of names."""

import os
import pickle
import struct
from pathlib import Path

import pytest
from PIL import Image

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.readers import read
from gan_t2i.data.settings import DataSettings

STEMS = ["001.Albatross/A_0001", "001.Albatross/A_0002"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for place in ("CUB_200_2011/images/001.Albatross", "text/001.Albatross", "train", "test"):
        (tmp_path / place).mkdir(parents=True)
    for stem in STEMS:
        Image.new("RGB", (16, 16)).save(tmp_path / "CUB_200_2011/images" / f"{stem}.jpg")
        (tmp_path / "text" / f"{stem}.txt").write_text(f"bird {stem[-1]}\nthe same bird {stem[-1]}\n", encoding="utf-8")
    (tmp_path / "train/filenames.pickle").write_bytes(pickle.dumps(STEMS[:1], protocol=2))
    (tmp_path / "test/filenames.pickle").write_bytes(pickle.dumps(STEMS[1:], protocol=4))
    return tmp_path


def test_captions_and_sides(root):
    reading = read(root)
    assert [(record.captions, record.split) for record in reading.records] == [
        (("bird 1", "the same bird 1"), "train"),
        (("bird 2", "the same bird 2"), "heldout"),
    ]
    assert [record.captions for record in read(root, DataSettings(caption_lines="first")).records] == [("bird 1",), ("bird 2",)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(root, protocol):
    (root / "train/filenames.pickle").write_bytes(pickle.dumps([*STEMS[:1], STEMS[0]], protocol=protocol))
    reading = read(root)
    assert len(reading.records) == 2  # a name that is listed twice is one picture
    assert not reading.bad


def test_a_pickle_of_python_2_is_read(root):
    (root / "train/filenames.pickle").write_bytes(b"(lp0\nS'" + STEMS[0].encode() + b"'\np1\na.")
    (root / "test/filenames.pickle").write_bytes(b"\x80\x02]q\x00U" + bytes([len(STEMS[1])]) + STEMS[1].encode() + b"q\x01a.")
    assert len(read(root).records) == 2


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_runs_nothing(root, protocol):
    evil = pickle.dumps([STEMS[0], _Evil(root / "owned")], protocol=protocol)
    pickle.loads(evil)  # noqa: S301 (makes a folder in tmp_path)
    assert (root / "owned").is_dir()  # it would do it
    (root / "owned").rmdir()
    (root / "train/filenames.pickle").write_bytes(evil)
    with pytest.raises(GanT2IError, match=r"train/filenames.pickle is refused: it holds the opcode ") as error:
        read(root)
    assert "\n" not in str(error.value)
    assert not (root / "owned").exists()


@pytest.mark.parametrize("value", [os.getcwd, Path("x"), {1}, {"a": "b"}, ("a",), 1, None, [b"a"]])
def test_whatever_is_no_list_of_strings_is_refused(value):
    from gan_t2i.data.readers.cub import pickled_list

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(ValueError, match=r"a list of names needs none"):
            pickled_list(pickle.dumps(value, protocol=protocol))


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b", "a"], ["é", "鳥"], [["a"], "b", []], [str(number) for number in range(3000)]])
def test_lists_are_read_as_pickle_reads_them(names):
    from gan_t2i.data.readers.cub import pickled_list

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickled_list(pickle.dumps(names, protocol=protocol)) == names


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"]",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
        b"}.",
        b"X\x01\0\0\0a.",
        b"\x80\x02U\x01\xff.",
    ],
)
def test_a_broken_or_greedy_pickle_is_refused(root, content):
    (root / "train/filenames.pickle").write_bytes(content)
    with pytest.raises(GanT2IError, match=r"^train/filenames.pickle "):
        read(root)


def test_a_pickle_that_would_have_pickle_allocate_32_gigabytes_is_an_empty_list(root):
    (root / "train/filenames.pickle").write_bytes(b"]r" + struct.pack("<I", 2**31 - 1) + b".")
    assert len(read(root).records) == 1  # that of test


def test_unsafe_names_and_missing_texts_are_counted(root):
    (root / "outside.jpg").write_bytes((root / "CUB_200_2011/images" / f"{STEMS[0]}.jpg").read_bytes())
    (root / "text" / f"{STEMS[1]}.txt").unlink()
    names = [STEMS[0], "../outside", "/etc/passwd", "http://h/a", "gone", ["nested"]]
    (root / "train/filenames.pickle").write_bytes(pickle.dumps(names))
    reading = read(root)
    assert len(reading.records) == 1
    assert sorted(item.kind for item in reading.bad) == [
        "image without caption",
        "missing image",
        "path outside the folder",
        "path outside the folder",
        "path outside the folder",
        "row without file_name",
    ]
