"""Tables beside and around pictures: metadata in parquet and in split folders, parquet with pictures, OpenCLIP's CSV, COCO, dataset.json."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data.packing import pack
from gan_t2i.data.readers import parquet as parquet_reader
from gan_t2i.data.readers import read, tables
from gan_t2i.data.settings import DataSettings


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write pictures a.png, b.png and sub/c.png, and outside.png beside the folder."""
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    for name in ("data/a.png", "data/b.png", "data/sub/c.png", "outside.png"):
        (tmp_path / name).write_bytes(png())
    return root


def captions(reading: Any) -> list[tuple[str, ...]]:
    return [record.captions for record in reading.records]


# imagefolder


def test_metadata_parquet_keeps_what_json_can_hold(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from datetime import UTC, datetime

    from pyarrow import parquet

    table = {
        "file_name": ["a.png", "../outside.png", None],
        "prompt": ["apple", "x", "y"],
        "size": [3, 4, 5],
        "scene": [{"n": 1}] * 3,
        "when": [datetime(2020, 1, 1, tzinfo=UTC)] * 3,
        "thumb": [b"x"] * 3,
    }
    parquet.write_table(pyarrow.table(table), folder / "metadata.parquet")
    reading = read(folder)
    assert captions(reading) == [("apple",)]
    assert reading.records[0].extra == {"size": 3, "scene": {"n": 1}}
    assert [(item.kind, item.where) for item in reading.bad] == [
        ("path outside the folder", "metadata.parquet:2"),
        ("row without file_name", "metadata.parquet:3"),
    ]
    pack(folder, folder.parent / "packed", 16, progress=False)


def test_metadata_in_folders_called_train_and_test_give_the_split(tmp_path):
    for side in ("train", "test"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "a.png").write_bytes(png())
        (tmp_path / side / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": side}))
    assert sorted((record.captions[0], record.split) for record in read(tmp_path).records) == [("test", "heldout"), ("train", "train")]
    (tmp_path / "test" / "metadata.jsonl").write_text('{"file_name": "../train/a.png", "text": "x"}')
    reading = read(tmp_path)
    assert [record.split for record in reading.records] == [None]
    assert [item.kind for item in reading.bad] == ["path outside the folder"]


# Several rows of a picture


def as_jsonl(folder: Path, rows: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def as_csv(folder: Path, rows: list[tuple[str, str]]) -> Path:
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *map(",".join, rows)]), encoding="utf-8")
    return folder


def as_parquet(folder: Path, rows: list[tuple[str, str]]) -> Path:
    write_parquet(folder / "metadata.parquet", {"file_name": [name for name, _ in rows], "text": [text for _, text in rows]})
    return folder


def as_openclip(folder: Path, rows: list[tuple[str, str]]) -> Path:
    (folder / "list.csv").write_text("\n".join(["filepath\ttitle", *map("\t".join, rows)]), encoding="utf-8")
    return folder


def as_labels(folder: Path, rows: list[tuple[str, str]]) -> Path:
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}), encoding="utf-8")
    return folder


def as_coco(folder: Path, rows: list[tuple[str, str]]) -> Path:
    images = [{"id": number, "file_name": name} for number, (name, _) in enumerate(rows)]
    write_coco(folder / "captions_all.json", images, [{"image_id": number, "caption": text} for number, (_, text) in enumerate(rows)])
    return folder


def as_pictures_in_parquet(folder: Path, rows: list[tuple[str, str]]) -> Path:
    table = {"key": [name for name, _ in rows], "jpg": [png("red" if name == "a.png" else "blue") for name, _ in rows]}
    return write_parquet(folder / "list.parquet", {**table, "caption": [text for _, text in rows]})


@pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet, as_openclip, as_labels, as_coco, as_pictures_in_parquet])
def test_the_rows_of_a_picture_are_its_captions_in_every_table(folder, write):
    rows = [("a.png", "one"), ("b.png", "bee"), ("a.png", "two"), ("a.png", "one"), ("a.png", " ")]
    reading = read(write(folder, rows))
    assert captions(reading) == [("one", "two"), ("bee",)]
    assert [item.kind for item in reading.bad] == ["empty caption"]


def test_rows_that_put_a_picture_on_both_sides_are_counted(folder):
    rows = [("a.png", "one", "train"), ("a.png", "two", ""), ("a.png", "three", "test"), ("b.png", "bee", ""), ("b.png", "bug", "test")]
    lines = [json.dumps({"file_name": name, "text": text, "split": split}) for name, text, split in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    reading = read(folder)
    assert [(record.captions, record.split) for record in reading.records] == [(("one", "two"), "train"), (("bee", "bug"), "heldout")]
    assert [(item.kind, item.where) for item in reading.bad] == [("contradicting split", "metadata.jsonl:3")]


# Encodings and separators


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "list.csv", "captions_all.json", "a.txt"])
def test_tables_and_texts_of_windows_are_read(folder, name, encoding):
    caption = "caf\u00e9 \u732b"
    content = {
        "metadata.jsonl": json.dumps({"file_name": "a.png", "text": caption}, ensure_ascii=False) + "\r\n",
        "metadata.csv": f"file_name,text\r\na.png,{caption}\r\n",
        "list.csv": f"filepath\ttitle\r\na.png\t{caption}\r\n",
        "captions_all.json": json.dumps({"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": caption}]}),
        "a.txt": f"{caption}\r\n",
    }[name]
    (folder / name).write_bytes(content.encode(encoding))
    assert captions(read(folder)) == [(caption,)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_separates_the_rows_of_json(folder, end):
    rows = [json.dumps({"file_name": f"{name}.png", "text": name}) for name in "ab"]
    (folder / "metadata.jsonl").write_bytes(end.join(rows).encode())
    reading = read(folder)
    assert [record.where for record in reading.records] == ["metadata.jsonl:1", "metadata.jsonl:2"]


@pytest.mark.parametrize("separator", [",", ", ", ";", "\t"])
def test_the_values_of_a_csv_are_separated_as_excel_does_it(folder, separator):
    (folder / "metadata.csv").write_text(f"file_name{separator}text\na.png{separator}red and round\n", encoding="utf-8")
    assert captions(read(folder)) == [("red and round",)]


# Parquet with the pictures in it


def write_parquet(path: Path, table: dict[str, list[Any]], **options: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(table), path, **options)
    return path


def test_rows_of_several_groups_are_read_in_order_and_faults_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_reader, "MAX_MEMBER", 5000)
    table = {
        "key": ["0", "1", "2", "2", "4", "5", "6"],
        "status": ["success", "failed", "success", "success", "success", None, "success"],
        "jpg": [png("red"), None, png("blue"), png(), None, b"no picture", b"x" * 5001],
        "caption": ["red", "gone", "blue", "again", "empty cell", "no picture", "too large"],
    }
    dataset = pack(write_parquet(tmp_path / "a.parquet", table, row_group_size=2), tmp_path / "packed", 16, progress=False)
    assert dataset.captions == ["red", "blue"]
    assert dataset.images[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert "archive member over the cap: 5001 bytes" in dataset.report.first_bad[4][1]
    assert dataset.report.bad == {"unreadable image": 3, "missing image": 1, "duplicate key": 1}
    assert dataset.report.notes == ['captions from column "caption", pictures from column "jpg" of the parquet files']


def test_a_parquet_file_without_a_known_caption_column_names_the_others(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"image": [png()], "alt": ["x"], "url": ["u"], "key": ["0"]})
    with pytest.raises(UsageError, match=r"a.parquet has no column text, caption, prompt or title: .* --caption-column alt or url "):
        read(path)
    assert captions(read(path, DataSettings(caption_column="alt"))) == [("x",)]


def test_a_path_instead_of_bytes_is_not_followed(folder):
    table = {"image": [{"bytes": png("blue"), "path": None}, {"bytes": None, "path": str(folder / "a.png")}], "text": ["blue", "red"]}
    source = write_parquet(folder.parent / "a.parquet", table)
    dataset = pack(source, folder.parent / "packed", 16, progress=False)
    assert dataset.captions == ["blue"]
    assert "the cell holds no bytes" in dataset.report.first_bad[0][1]


def test_the_names_of_parquet_files_give_the_split(tmp_path):
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        write_parquet(tmp_path / f"{name}.parquet", {"image": [png()], "text": [name]})
    assert [record.split for record in read(tmp_path).records] == ["train", "heldout"]


def test_a_parquet_file_without_pictures_or_damaged(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"url": ["u"], "text": ["x"]})
    with pytest.raises(GanT2IError, match=r"a.parquet has no column of pictures; its columns are: url, text"):
        read(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(GanT2IError, match=r"a.parquet is not a readable parquet file"):
        read(path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(GanT2IError, match=r"needs pyarrow: pip install 'gan-t2i\[data\]'") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


# OpenCLIP


def test_openclip_rows_become_captions_and_paths_cannot_leave_the_folder(folder):
    rows = ["filepath\ttitle", "a.png\tan apple", f"{folder}/b.png\tx", "../outside.png\tx", "http://h/b.png\tx", "gone.png\tx", "a.png\tred"]
    (folder / "list.csv").write_text("\n".join([*rows, "b.png\t "]), encoding="utf-8")
    reading = read(folder / "list.csv")
    assert captions(reading) == [("an apple", "red")]
    assert [item.kind for item in reading.bad] == ["path outside the folder"] * 3 + ["missing image", "empty caption"]
    assert captions(read(folder)) == captions(reading)


def test_the_image_root_may_be_another_folder(folder, tmp_path):
    (tmp_path / "list.tsv").write_text("filepath\ttitle\na.png\tapple\n", encoding="utf-8")
    with pytest.raises(GanT2IError, match="no usable pair"):
        read(tmp_path / "list.tsv")
    assert captions(read(tmp_path / "list.tsv", DataSettings(image_root=str(folder)))) == [("apple",)]
    with pytest.raises(UsageError, match="image_root nowhere is not a folder"):
        read(tmp_path / "list.tsv", DataSettings(image_root="nowhere"))


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl", "metadata.csv"])
def test_a_table_may_lie_apart_from_its_pictures(folder, tmp_path, name):
    text = '{"file_name": "sub/c.png", "text": "cat"}' if name.endswith("jsonl") else "file_name,text\nsub/c.png,cat\n"
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / name).write_text(text, encoding="utf-8")
    assert captions(read(tmp_path / "apart" / name, DataSettings(image_root=str(folder)))) == [("cat",)]


def test_an_image_root_without_a_file_that_names_pictures_is_refused(folder, tmp_path):
    (folder / "a.txt").write_text("an apple", encoding="utf-8")
    with pytest.raises(UsageError, match=r"image_root .* is for a table, COCO or dataset\.json file, and .* is not one"):
        read(folder, DataSettings(image_root=str(tmp_path)))


def test_pictures_of_an_image_root_in_the_source_are_used(folder):
    (folder / "list.csv").write_text("filepath\ttitle\nc.png\tcat\n", encoding="utf-8")
    reading = read(folder, DataSettings(image_root=str(folder / "sub")))
    assert captions(reading) == [("cat",)]
    assert reading.notes[1:] == ["not used in the format openclip: .png 2 (a.png)"]


# COCO and dataset.json


def write_coco(path: Path, images: Any, annotations: Any) -> Path:
    path.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    return path


def test_coco_captions_join_their_images_under_the_root(folder, tmp_path):
    images = [{"id": 7, "file_name": "sub/c.png"}, {"id": 3, "file_name": "a.png"}, {"id": 4, "file_name": "b.png"}]
    images += [{"id": 5, "file_name": "../outside.png"}, {"id": 6}, {"id": 8, "file_name": "a.png"}, "nonsense"]
    annotations = [{"image_id": 3, "caption": "one"}, {"image_id": 7, "caption": " c\nat "}, {"image_id": 3, "caption": "two"}]
    annotations += [{"image_id": 99, "caption": "lost"}, {"caption": "lost"}, {"image_id": [], "caption": "x"}]
    path = write_coco(tmp_path / "captions_val2017.json", images, annotations)
    reading = read(path, DataSettings(image_root=str(folder)))
    assert captions(reading) == [("c at",), ("one", "two")]
    kinds = sorted(item.kind for item in reading.bad)
    assert kinds == [
        "caption without image",
        "image without caption",
        "image without caption",
        "malformed JSON",
        "malformed JSON",
        "path outside the folder",
        "row without file_name",
        "row without file_name",
    ]


def test_coco_images_with_the_same_id_are_not_used(folder, tmp_path):
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}, {"id": 1, "file_name": "sub/c.png"}]
    path = write_coco(tmp_path / "captions_x.json", images, [{"image_id": number, "caption": f"of {number}"} for number in (1, 2)])
    reading = read(path, DataSettings(image_root=str(folder)))
    assert captions(reading) == [("of 2",)]
    assert [(item.kind, item.where) for item in reading.bad] == [
        ("duplicate key", "captions_x.json: image 0"),
        ("duplicate key", "captions_x.json: image 2"),
    ]


def test_missing_files_of_coco_are_counted_once_each(folder):
    images = [{"id": number, "file_name": f"{name}.png"} for number, name in enumerate(("a", "gone", "b", "lost"))]
    annotations = [{"image_id": number % 5, "caption": f"caption {number}"} for number in range(10)]
    reading = read(write_coco(folder / "captions_all.json", images, annotations))
    assert captions(reading) == [("caption 0", "caption 5"), ("caption 2", "caption 7")]
    assert [(item.kind, item.where) for item in reading.bad] == [
        ("missing image", "captions_all.json: image 1"),
        ("missing image", "captions_all.json: image 3"),
        ("caption without image", "captions_all.json: image_id 4"),
    ]


def test_a_coco_file_with_a_duplicate_key_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "images": []}', encoding="utf-8")
    with pytest.raises(GanT2IError, match=r"^a\.json: the key 'images' occurs twice in an object"):
        read(tmp_path / "a.json")


def test_a_coco_folder_gives_the_split(tmp_path):
    (tmp_path / "annotations").mkdir()
    for side in ("train2017", "val2017"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "a.png").write_bytes(png())
        path = tmp_path / "annotations" / f"captions_{side}.json"
        write_coco(path, [{"id": 1, "file_name": "a.png"}], [{"image_id": 1, "caption": side}])
    assert [(record.captions[0], record.split) for record in read(tmp_path).records] == [("train2017", "train"), ("val2017", "heldout")]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must be a JSON object, not list"),
        ("{}", "needs the lists images and annotations"),
        ('{"images": {}, "annotations": []}', "needs the lists"),
    ],
)
def test_a_file_that_is_not_coco_is_refused(tmp_path, content, why):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(GanT2IError, match=why):
        read(tmp_path / "a.json")


def test_a_json_file_over_the_cap_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_TABLE", 10)
    with pytest.raises(GanT2IError, match=r"a.json has more than 10 bytes"):
        read(write_coco(tmp_path / "a.json", [], []))


def test_labels_of_dataset_json_are_captions_and_numbers_are_not(folder):
    labels = [["a.png", "apple"], ["b.png", 3], ["sub/c.png", ["c", "cat"]], ["../outside.png", "x"], ["a.png", "again"], "nonsense"]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
    reading = read(folder)
    assert captions(reading) == [("apple", "again"), ("c", "cat")]
    assert [item.kind for item in reading.bad] == [
        "caption not text",
        "path outside the folder",
        "row without file_name",
    ]
    (folder / "dataset.json").write_text('{"labels": null}', encoding="utf-8")
    with pytest.raises(GanT2IError, match="labels must be a list"):
        read(folder)


# Which format


def stray_tar(folder: Path) -> None:
    with tarfile.open(folder / "old_backup.tar", "w") as archive:
        for name in ("a.png", "a.txt"):
            archive.add(folder / name, name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("old_backup.tar", stray_tar),
        ("old_backup.tar", b"no tar"),
        ("old.parquet", lambda folder: write_parquet(folder / "old.parquet", {"image": [png()], "text": ["x"]})),
        ("list.parquet", lambda folder: write_parquet(folder / "list.parquet", {"url": ["u"]})),
        ("captions_draft.json", b'{"a.png": "x"}'),
        ("captions_draft.json", b"{"),
        ("dataset.json", b'{"labels": null}'),
        ("dataset.json", b'{"labels": [["a.png", 3], ["b.png", 4]]}'),
        ("metadata.csv", b"name,size\na.png,3\n"),
        ("metadata.jsonl", b'{"done": 3}\n'),
        ("metadata.jsonl", b""),
        ("files.tsv", b"filepath\tsize\na.png\t3\n"),
        ("sub/metadata.jsonl", b'{"file_name": "c.png", "text": "from metadata"}'),
        ("notes.md", b"x"),
    ],
)
@pytest.mark.parametrize("on_bad", ["skip", "error"])
def test_what_lies_beside_the_pairs_does_not_displace_them(folder, name, content, on_bad):
    for stem in ("a", "b", "sub/c"):
        (folder / f"{stem}.txt").write_text(stem, encoding="utf-8")
    if callable(content):
        content(folder)
    else:
        (folder / name).write_bytes(content)
    reading = read(folder, DataSettings(on_bad=on_bad))
    assert captions(reading) == [("a",), ("b",), ("sub/c",)]
    assert f"not used in the format pairs: {Path(name).suffix} 1 ({name})" in reading.notes


def test_tars_are_not_displaced_by_a_few_pictures(folder):
    (folder / "a.txt").write_text("a", encoding="utf-8")
    for number in range(3):
        stray_tar(folder)
        (folder / "old_backup.tar").rename(folder / f"{number}.tar")
    reading = read(folder)
    assert captions(reading) == [("a",)] * 3
    assert reading.notes[-1] == "not used in the format tars: .png 3 (a.png), .txt 1 (a.txt)"
    assert captions(read(folder, DataSettings(format="pairs"))) == [("a",)]


@pytest.mark.parametrize("names", [("captions_a.json", "captions_b.json"), ("a.parquet", "b.parquet"), ("a.csv", "b.csv")])
def test_a_broken_table_spoils_no_other(folder, names):
    good, broken = names
    if good.endswith(".json"):
        write_coco(folder / good, [{"id": 1, "file_name": "a.png"}], [{"image_id": 1, "caption": "a"}])
    elif good.endswith(".csv"):
        (folder / good).write_text("filepath\ttitle\na.png\ta\n")
    else:
        write_parquet(folder / good, {"image": [png()], "text": ["a"]})
    (folder / broken).write_bytes(b"filepath\ttitle\ttitle\n")
    reading = read(folder)
    assert captions(reading) == [("a",)]
    assert [(item.kind, item.where) for item in reading.bad] == [("unreadable table", broken)]


def test_a_named_format_is_taken_or_refused(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "from metadata"}', encoding="utf-8")
    (folder / "a.txt").write_text("from text", encoding="utf-8")
    assert captions(read(folder)) == [("from metadata",)]
    assert captions(read(folder, DataSettings(format="pairs"))) == [("from text",)]
    with pytest.raises(UsageError, match=r"is not in the format coco: it has no captions_\*.json"):
        read(folder, DataSettings(format="coco"))
    with pytest.raises(UsageError, match="config key format = 'word': input should be 'auto', 'imagefolder', 'openclip'"):
        DataSettings.parse({"format": "word"})


def test_caption_files_and_lines(folder):
    (folder / "a.caption").write_text("first\nsecond", encoding="utf-8")
    (folder / "b.caption").write_text("from caption", encoding="utf-8")
    (folder / "b.txt").write_text("from txt\n", encoding="utf-8")
    assert captions(read(folder)) == [("first", "second"), ("from txt",)]
    assert captions(read(folder, DataSettings(caption_lines="first"))) == [("first",), ("from txt",)]
