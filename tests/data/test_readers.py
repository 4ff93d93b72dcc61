import json
import os
from pathlib import Path

import pytest
from PIL import Image

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data.readers import read
from gan_t2i.data.records import BadItem, DataReport, Record
from gan_t2i.data.settings import DataSettings


@pytest.fixture
def folder(tmp_path):
    """Write a data folder with two pictures, a.png and sub/b.png, and a file outside.png beside it."""
    root = tmp_path / "data"
    for name in ("data/a.png", "data/sub/b.png", "outside.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path)
    return root


def read_records(source, settings=None):
    """Return the records and the bad items that `read` finds."""
    reading = read(source, settings)
    return reading.records, reading.bad


def jsonl(folder: Path, *rows) -> Path:
    path = folder / "metadata.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


GOOD = {"file_name": "sub/b.png", "text": "a bee"}


def test_metadata_jsonl_gives_captions_splits_and_extras_in_the_order_of_the_file(folder):
    jsonl(
        folder, {**GOOD, "scene": {"count": 2}, "split": "test"}, {"file_name": "a.png", "text": ["  an\t apple ", "red", "red"], "split": None}
    )
    records, bad = read_records(folder)
    assert bad == []
    assert records == [
        Record(folder / "sub/b.png", ("a bee",), "metadata.jsonl:1", "heldout", {"scene": {"count": 2}}),
        Record(folder / "a.png", ("an apple", "red"), "metadata.jsonl:2", None, {}),
    ]
    assert records[0].image.is_absolute()


def test_a_relative_path_or_the_metadata_file_itself_gives_the_same_records(folder, monkeypatch):
    jsonl(folder, GOOD)
    monkeypatch.chdir(folder.parent)
    assert read_records(Path("data")) == read_records(folder) == read_records(folder / "metadata.jsonl")


def test_metadata_csv_with_quotes_and_a_byte_order_mark(folder):
    (folder / "metadata.csv").write_bytes(
        b'\xef\xbb\xbffile_name,caption,split,kind\r\na.png,"red, and\nround",train,fruit\r\nsub/b.png,bee,,\r\n'
    )
    reading = read(folder)
    assert reading.notes == ['captions from column "caption" of metadata.csv']
    assert [(r.captions, r.split, r.extra) for r in reading.records] == [
        (("red, and round",), "train", {"kind": "fruit"}),
        (("bee",), None, {"kind": ""}),
    ]
    assert [r.where for r in reading.records] == ["metadata.csv:3", "metadata.csv:4"]


@pytest.mark.parametrize("column", ["text", "caption", "prompt", "title"])
def test_the_caption_column_is_found_and_reported(folder, column):
    jsonl(folder, {"file_name": "a.png", column: "apple", "other": "x"})
    reading = read(folder)
    assert reading.notes[0] == f'captions from column "{column}" of metadata.jsonl'
    assert reading.records[0].captions == ("apple",)
    assert reading.records[0].extra == {"other": "x"}


def test_a_chosen_column_wins_and_an_empty_text_column_is_skipped(folder):
    jsonl(folder, {"file_name": "a.png", "text": None, "prompt": "p", "alt": "x"})
    assert read_records(folder)[0][0].captions == ("p",)
    assert read_records(folder, DataSettings(caption_column="alt"))[0][0].captions == ("x",)


def test_invisible_characters_may_join_others(folder):
    """As in the emoji of a family, and in Persian."""
    family = "family \U0001f468\u200d\U0001f469\u200d\U0001f466"
    jsonl(folder, {"file_name": "a.png", "text": family}, {"file_name": "sub/b.png", "text": "\u0645\u06cc\u200c\u062e"})
    assert read_records(folder)[0][0].captions == (family,)
    assert len(read_records(folder)[0]) == 2


def test_a_duplicate_column_is_refused(folder):
    (folder / "metadata.csv").write_text("file_name,text,text\na.png,x,y\n", encoding="utf-8")
    with pytest.raises(GanT2IError, match=r"^metadata\.csv has the column 'text' twice"):
        read(folder)


@pytest.mark.parametrize("column", ["image", "file", "filename", "path"])
def test_another_name_of_the_file_column_is_taken(folder, column):
    (folder / "metadata.csv").write_text(f"{column},description\na.png,apple\nsub/b.png,bee\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"name the caption column with --caption-column description \("):
        read(folder)
    reading = read(folder, DataSettings(caption_column="description"))
    assert [record.captions for record in reading.records] == [("apple",), ("bee",)]
    assert reading.records[0].extra == {}
    assert reading.notes[0] == f'captions from column "description", pictures from column "{column}" of metadata.csv'


def test_file_name_wins_and_a_table_without_a_file_column_is_named(folder):
    jsonl(folder, {"file_name": "a.png", "image": "gone.png", "text": "apple"})
    assert read_records(folder)[0][0].extra == {"image": "gone.png"}
    jsonl(folder, {"img": "a.png", "text": "apple"})
    with pytest.raises(GanT2IError, match=r"has no column file_name, image, file, filename or path .*; its columns are: img, text"):
        read(folder)


@pytest.mark.parametrize("wanted", ["words", None])
def test_an_unknown_caption_column_lists_those_with_text(folder, wanted):
    jsonl(folder, {"file_name": "a.png", "alt": "x", "tags": ["y"], "size": 3})
    with pytest.raises(
        UsageError,
        match=r"^metadata.jsonl has no column .*: name the caption column with --caption-column alt or tags \(caption_column in Python\)$",
    ):
        read(folder, DataSettings(caption_column=wanted))


@pytest.mark.parametrize(
    ("row", "kind", "why"),
    [
        ({"file_name": "gone.png", "text": "x"}, "missing image", "'gone.png' does not exist"),
        ({"file_name": "sub", "text": "x"}, "missing image", "'sub' does not exist"),
        ({"file_name": "a\0.png", "text": "x"}, "missing image", "'a\\x00.png' does not exist"),
        ({"file_name": "\ud800.png", "text": "x"}, "missing image", "'\\ud800.png' does not exist"),
        ({"file_name": "a" * 300, "text": "x"}, "missing image", "does not exist"),
        ({"file_name": "a.png", "text": None}, "image without caption", "'a.png' has no caption"),
        ({"file_name": "a.png"}, "image without caption", "'a.png' has no caption"),
        ({"file_name": "a.png", "text": []}, "image without caption", "'a.png' has no caption"),
        ({"file_name": "a.png", "text": " \t"}, "empty caption", "the caption is empty"),
        ({"file_name": "a.png", "text": [""]}, "empty caption", "the caption is empty"),
        ({"file_name": "a.png", "text": 3}, "caption not text", "the caption is int, not text"),
        ({"file_name": "a.png", "text": "\ud800"}, "caption not UTF-8", "the caption is not UTF-8"),
        (b'{"file_name": "a.png", "text": "caf\xe9"}', "caption not UTF-8", "the caption is not UTF-8"),
        ({"file_name": "{tmp}/outside.png", "text": "x"}, "path outside the folder", "leads out of the folder"),
        ({"file_name": "{tmp}/data/a.png", "text": "x"}, "path outside the folder", "leads out of the folder"),
        ({"file_name": "../outside.png", "text": "x"}, "path outside the folder", "'../outside.png' leads out of the folder"),
        ({"file_name": "sub/../a.png", "text": "x"}, "path outside the folder", "leads out of the folder"),
        ({"file_name": "..\\outside.png", "text": "x"}, "path outside the folder", "leads out of the folder"),
        ({"file_name": "C:\\a.png", "text": "x"}, "path outside the folder", "leads out of the folder"),
        ({"file_name": "https://example.org/a.png", "text": "x"}, "path outside the folder", "leads out of the folder"),
        ({"file_name": "up/../outside.png", "text": "x"}, "path outside the folder", "leads out of the folder"),
        ({"text": "x"}, "row without file_name", "the row has no file_name"),
        ({"file_name": " ", "text": "x"}, "row without file_name", "the row has no file_name"),
        ({"file_name": None, "text": "x"}, "row without file_name", "the row has no file_name"),
        ({"file_name": 7, "text": "x"}, "file_name not text", "the file_name is int, not text"),
        ({"file_name": ["a.png"], "text": "x"}, "file_name not text", "the file_name is list, not text"),
        ({"file_name": "a.png", "text": "x", "split": "dev"}, "unknown split", "split must be one of: eval, held-out, "),
        ({"file_name": "a.png", "text": "x", "split": 1}, "unknown split", "not 1"),
        (b'{"file_name": ', "malformed JSON", "the line is not JSON: Expecting value"),
        (b"[" * 100_000, "malformed JSON", "the line is not JSON"),
        (b'["a.png", "x"]', "malformed JSON", "the line must be a JSON object, not list"),
        (b'{"file_name": "a.png", "text": "x", "text": "y"}', "duplicate key", "the key 'text' occurs twice in an object"),
        (b'{"file_name": "a.png", "text": "x", "n": {"b": 1, "b": 1}}', "duplicate key", "the key 'b' occurs twice in an object"),
        ({"file_name": "a.png", "text": "\u200b \u200b"}, "empty caption", "the caption has no visible characters"),
        ({"file_name": "a.png", "text": "red\x1b[2Jcar"}, "control characters in caption", "which a terminal would obey"),
        ({"file_name": "a.png", "text": "a\0b"}, "control characters in caption", "which a terminal would obey"),
    ],
)
def test_a_bad_row_is_counted_or_refused(folder, row, kind, why):
    (folder / "up").symlink_to(folder.parent, target_is_directory=True)
    if isinstance(row, dict) and "{tmp}" in str(row.get("file_name")):
        row = {**row, "file_name": row["file_name"].format(tmp=folder.parent)}
    jsonl(folder, GOOD, row)
    records, bad = read_records(folder)
    assert [record.captions for record in records] == [("a bee",)]
    assert [(item.kind, item.where) for item in bad] == [(kind, "metadata.jsonl:2")]
    assert why in bad[0].why
    with pytest.raises(GanT2IError, match=r"^metadata.jsonl:2: ") as error:
        read_records(folder, DataSettings(on_bad="error"))
    assert str(error.value) == f"metadata.jsonl:2: {bad[0].why}"


def test_a_bad_caption_of_a_list_spoils_no_other(folder):
    jsonl(folder, {"file_name": "a.png", "text": ["apple", "", "fruit", 3]})
    records, bad = read_records(folder)
    assert records[0].captions == ("apple", "fruit")
    assert [item.kind for item in bad] == ["empty caption", "caption not text"]


def test_bad_lines_of_a_csv(folder):
    long = b"x" * 200_000  # beyond the csv module's limit of a value
    (folder / "metadata.csv").write_bytes(b"file_name,text\na.png,apple\nsub/b.png,bee,more\n" + long + b",x\nsub/b.png,caf\xe9\n")
    records, bad = read_records(folder)
    assert [record.captions for record in records] == [("apple",)]
    assert [(item.kind, item.where) for item in bad] == [
        ("malformed CSV", "metadata.csv:3"),
        ("malformed CSV", "metadata.csv:4"),
        ("caption not UTF-8", "metadata.csv:5"),
    ]
    assert bad[0].why == "the line has more than the 2 values of the header"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quote_that_is_never_closed_takes_no_rows_in_silence(folder, end):
    rows = ["file_name,text", "sub/b.png,bee", 'a.png,"apple', "sub/b.png,wasp", 'sub/b.png,"a 5"" pipe"', ""]
    (folder / "metadata.csv").write_bytes(end.join(rows).encode())
    records, bad = read_records(folder)
    assert [record.captions for record in records] == [("bee",)]
    assert [(item.kind, item.where) for item in bad] == [("malformed CSV", "metadata.csv:3")]
    assert bad[0].why == "a quote in it is never closed, so the 2 lines after it are no rows of their own"


def test_captions_of_several_lines_and_quotes_within_are_read(folder):
    (folder / "metadata.csv").write_text('file_name,text\nsub/b.png,5" pipe\na.png,"apple\nof two lines"\n', newline="")
    records, bad = read_records(folder)
    assert [record.captions for record in records] == [('5" pipe',), ("apple of two lines",)]
    assert not bad


def test_a_loop_of_links_is_a_missing_image(folder):
    (folder / "loop.png").symlink_to(folder / "loop.png")
    jsonl(folder, GOOD, {"file_name": "loop.png", "text": "x"})
    assert [item.kind for item in read_records(folder)[1]] == ["missing image"]


def test_pairs_are_found_recursively_in_a_stable_order_with_one_caption_a_line(folder):
    (folder / "sub/b.txt").write_bytes(b"\xef\xbb\xbfa bee\r\n\r\n  an  insect \n")
    (folder / "a.txt").write_text("an apple", encoding="utf-8")
    for name in ("c.v2.JPG", "c.v2.webp", "d.jpeg", "e.bmp", "f.gif"):
        Image.new("RGB", (8, 8)).save(folder / name)
    for stem in ("c.v2", "d", "e", "f"):
        (folder / f"{stem}.txt").write_text(f"the {stem}", encoding="utf-8")
    (folder / ".hidden.png").write_bytes(b"")
    records, bad = read_records(folder)
    assert bad == []
    assert records[0] == Record(folder / "a.png", ("an apple",), "a.txt")
    assert [record.image.relative_to(folder).as_posix() for record in records] == [
        "a.png",
        "c.v2.JPG",
        "c.v2.webp",
        "d.jpeg",
        "e.bmp",
        "f.gif",
        "sub/b.png",
    ]
    assert records[-1].captions == ("a bee", "an insect")
    assert records[-1].where == "sub/b.txt"


@pytest.mark.parametrize(
    ("make", "kind", "where", "why"),
    [
        (lambda f: None, "image without caption", "a.png", "the image has no .txt or .caption of the same stem"),
        (lambda f: (f / "a.txt").write_bytes(b" \n\n"), "empty caption", "a.txt", "the caption is empty"),
        (lambda f: (f / "a.txt").write_bytes(b"caf\xe9"), "caption not UTF-8", "a.txt", "the caption is not UTF-8"),
        (lambda f: (f / "a.txt").write_text("x\n" * 600_000), "caption too long", "a.txt", "the file has more than 1048576 bytes"),
        (lambda f: (f / "a.txt").symlink_to(f / "gone"), "unreadable caption", "a.txt", "the file is a broken link or not a regular file"),
        (lambda f: (f / "a.png").rename(f / "a.txt"), "caption without image", "a.txt", "the caption has no image of the same stem"),
    ],
)
def test_a_bad_pair_is_counted_or_refused(folder, make, kind, where, why):
    (folder / "sub/b.txt").write_text("a bee", encoding="utf-8")
    make(folder)
    records, bad = read_records(folder)
    assert [record.captions for record in records] == [("a bee",)]
    assert bad == [BadItem(kind, where, why)]
    with pytest.raises(GanT2IError, match=rf"^{where}: "):
        read_records(folder, DataSettings(on_bad="error"))


@pytest.mark.parametrize("target", ["gone", "x.png", None])
def test_an_image_that_is_a_broken_link_or_not_a_regular_file(folder, target):
    (folder / "a.txt").write_text("apple", encoding="utf-8")
    (folder / "x.txt").write_text("x", encoding="utf-8")
    if target is None:
        os.mkfifo(folder / "x.png")
    else:
        (folder / "x.png").symlink_to(folder / target)
    (folder / "sub/b.png").unlink()
    records, bad = read_records(folder)
    assert len(records) == 1
    assert [(item.kind, item.where) for item in bad] == [("missing image", "x.png")]


def test_a_long_caption_is_kept(folder):
    long = "a red apple " + "on a table " * 1000
    (folder / "a.txt").write_text(f"{long}\nan apple", encoding="utf-8")
    (folder / "sub/b.png").unlink()
    assert read_records(folder) == ([Record(folder / "a.png", (long.strip(), "an apple"), "a.txt")], [])
    jsonl(folder, {"file_name": "a.png", "text": long})
    assert read_records(folder)[0][0].captions == (long.strip(),)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85"])
def test_only_line_ends_separate_captions(folder, separator):
    (folder / "a.txt").write_bytes(f"a red{separator}apple\r\nan apple\rfruit".encode())
    (folder / "sub/b.png").unlink()
    assert read_records(folder) == ([Record(folder / "a.png", ("a red apple", "an apple", "fruit"), "a.txt")], [])


def test_a_bad_line_spoils_no_other(folder):
    (folder / "a.txt").write_bytes(b"an apple\ncaf\xe9\n")
    (folder / "sub/b.png").unlink()
    records, bad = read_records(folder)
    assert records[0].captions == ("an apple",)
    assert [item.kind for item in bad] == ["caption not UTF-8"]


@pytest.mark.parametrize("suffix", ["heic", "PSD", "ico"])
def test_a_picture_of_another_format_is_called_so(folder, suffix):
    (folder / "a.txt").write_text("apple", encoding="utf-8")
    (folder / f"sub/b.{suffix}").write_bytes(b"x")
    (folder / "sub/b.txt").write_text("a bee", encoding="utf-8")
    (folder / "sub/b.png").unlink()
    records, bad = read_records(folder)
    assert [record.captions for record in records] == [("apple",)]
    why = f".{suffix.lower()} is not read: convert it to PNG"
    assert bad == [BadItem("image of a format that is not read", f"sub/b.{suffix}", why)]


def test_a_file_name_that_is_not_utf8_can_be_printed(folder):
    (folder / "a.txt").write_text("apple", encoding="utf-8")
    (folder / "sub/b.png").unlink()
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    assert read_records(folder)[1][0].where == "caf\\udce9.png"


def test_without_a_usable_pair_the_message_lists_files_found_and_looked_for(folder):
    looked_for = "looked for metadata.jsonl, metadata.csv, metadata.parquet, a tab-separated .csv, dataset.json, icons.json, captions_*.json, "
    looked_for += "train/filenames.pickle, *.tar, *.parquet, or images with same-stem .txt or .caption"
    remedy = "put a.txt beside a.png, or add metadata.jsonl"
    with pytest.raises(GanT2IError) as error:
        read(folder)
    assert str(error.value) == f"no usable pair in {folder}: found 2 images, 0 captions; {remedy}; {looked_for}"
    jsonl(folder, b"nonsense")
    with pytest.raises(GanT2IError) as error:
        read(folder)
    assert str(error.value).startswith(f"no usable pair in {folder}: found 0 images, 0 captions; {looked_for} (first fault: metadata.jsonl:1: ")


def test_wrong_arguments(folder):
    with pytest.raises(UsageError, match="gone does not exist"):
        read(folder / "gone")
    with pytest.raises(UsageError, match=r"a.png is neither a folder nor a .zip, .jsonl, .csv, .json, .tar or .parquet file"):
        read(folder / "a.png")
    with pytest.raises(UsageError, match="on_bad = 'ignore': input should be 'skip' or 'error'"):
        DataSettings.parse({"on_bad": "ignore"})
    (folder / "a.txt").write_text("apple", encoding="utf-8")
    with pytest.raises(UsageError, match=r"caption_column text is for tables and metadata, and images with same-stem .txt have no columns"):
        read(folder, DataSettings(caption_column="text"))


def test_the_report_counts_bad_items_by_kind_and_shows_the_first_five():
    items = [BadItem("empty caption", f"{n}.txt", "the caption is empty") for n in range(5)] + [BadItem("missing image", "m:1", "gone")]
    report = DataReport.of([Record(Path("/a"), ("x", "y"), "a.txt"), Record(Path("/b"), ("z",), "b.txt", "heldout")], items, ["a note"])
    assert str(report).splitlines() == [
        "2 usable pairs, 3 captions; 1 pair held out",
        "a note",
        "6 left out: empty caption 5, missing image 1",
        *(f"  {n}.txt: the caption is empty" for n in range(5)),
    ]


def test_the_report_of_one_pair_without_a_split() -> None:
    report = DataReport.of([Record(Path("/a"), ("x",), "a.txt")], [])
    assert str(report) == "1 usable pair, 1 caption; no split given"
    assert report.text(0.053) == "1 usable pair, 1 caption; no split given, so training holds out 5.3%"


def test_a_run_among_the_pictures_is_not_read(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a black square\n", encoding="utf-8")
    grids = tmp_path / "runs" / "00000-a" / "grids"
    grids.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(grids / "grid-000000000.png")
    assert len(read_records(tmp_path)[1]) == 1  # a picture without a caption, as long as nothing says that it is a run
    (grids.parent / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    records, bad = read_records(tmp_path)
    assert [record.image.name for record in records] == ["a.png"]
    assert not bad
