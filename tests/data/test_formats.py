"""The same pictures and captions in every format, made by that format's own library where there is one, pack to the same fingerprint."""

import csv
import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from gan_t2i.data.packing import pack
from gan_t2i.data.readers import READERS, read
from gan_t2i.data.settings import DataSettings, Format

COUNT = 20
ALL_TRAINED = DataSettings(holdout_fraction=0)  # as most of the formats cannot say what is held out
Item = tuple[str, bytes, list[str]]  # stem, encoded picture, captions


def make_items(captions: int) -> list[Item]:
    rng = np.random.default_rng(0)
    items = []
    for index in range(COUNT):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (20, 28, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=90)
        items.append((f"{index:05}", buffer.getvalue(), [f"picture {index} as told {number}" for number in range(captions)]))
    return items


def write_pictures(folder: Path, items: list[Item]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, picture, _ in items:
        (folder / f"{stem}.jpg").write_bytes(picture)


def one_or_list(captions: list[str]) -> str | list[str]:
    return captions[0] if len(captions) == 1 else captions


def metadata_jsonl(folder: Path, items: list[Item]) -> Path:
    write_pictures(folder, items)
    lines = [json.dumps({"file_name": f"{stem}.jpg", "text": one_or_list(captions)}) for stem, _, captions in items]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def metadata_csv(folder: Path, items: list[Item]) -> Path:
    write_pictures(folder, items)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "text"), *((f"{stem}.jpg", captions[0]) for stem, _, captions in items)])
    return folder


def metadata_parquet(folder: Path, items: list[Item]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_pictures(folder, items)
    table = {"file_name": [f"{stem}.jpg" for stem, _, _ in items], "caption": [one_or_list(captions) for _, _, captions in items]}
    parquet.write_table(pyarrow.table(table), folder / "metadata.parquet")
    return folder


def pairs(folder: Path, items: list[Item], suffix: str = "txt") -> Path:
    for part in ("a", "b"):
        write_pictures(folder / part, [item for item in items if (item[0] >= "00010") == (part == "b")])
    for stem, _, captions in items:
        (folder / ("b" if stem >= "00010" else "a") / f"{stem}.{suffix}").write_text("\n".join(captions), encoding="utf-8")
    return folder


def caption_files(folder: Path, items: list[Item]) -> Path:
    return pairs(folder, items, "caption")


def webdataset_tars(folder: Path, items: list[Item]) -> Path:
    webdataset = pytest.importorskip("webdataset")
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/shard-%04d.tar", maxcount=8, verbose=0) as writer:
        for stem, picture, captions in items:
            writer.write({"__key__": stem, "jpg": picture, "txt": "\n".join(captions)})
    return folder


def brace_pattern(folder: Path, items: list[Item]) -> Path:
    return webdataset_tars(folder, items) / "shard-{0000..0002}.tar"


def json_in_tar(folder: Path, items: list[Item]) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "all.tar", "w") as archive:
        for stem, picture, captions in items:
            for name, content in ((f"{stem}.jpg", picture), (f"{stem}.json", json.dumps({"caption": one_or_list(captions)}).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder / "all.tar"


def _img2dataset(folder: Path, items: list[Item], writer_name: str) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    writers = pytest.importorskip("img2dataset.writer")
    folder.mkdir()
    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("key", "caption", "url", "status")] + [("width", pyarrow.int32())])
    for shard, part in enumerate((items[:12], items[12:])):
        writer = getattr(writers, writer_name)(shard, str(folder), True, 5, schema, "jpg")
        for stem, picture, captions in part:
            meta = {"key": stem, "caption": captions[0], "url": "https://example.org/a.jpg", "status": "success", "width": 28}
            writer.write(picture, stem, captions[0], meta)
        failed = {"key": f"failed{shard}", "caption": "gone", "url": "https://example.org/b.jpg", "status": "failed_to_download", "width": None}
        writer.write(None, failed["key"], "gone", failed)
        writer.close()
    return folder


def img2dataset_tars(folder: Path, items: list[Item]) -> Path:
    return _img2dataset(folder, items, "WebDatasetSampleWriter")


def img2dataset_parquet(folder: Path, items: list[Item]) -> Path:
    return _img2dataset(folder, items, "ParquetSampleWriter")


def _dataset(items: list[Item]) -> Any:
    datasets = pytest.importorskip("datasets")
    columns = {
        "image": [{"bytes": picture, "path": None} for _, picture, _ in items],
        "text": [one_or_list(captions) for _, _, captions in items],
    }
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def hub_parquet(folder: Path, items: list[Item]) -> Path:
    table = _dataset(items)
    folder.mkdir()
    table.to_parquet(str(folder / "train-00000-of-00001.parquet"))
    return folder


def dataset_object(folder: Path, items: list[Item]) -> Any:
    return _dataset(items)


def openclip_csv(folder: Path, items: list[Item]) -> Path:
    write_pictures(folder, items)
    rows = [(f"{stem}.jpg", caption) for stem, _, captions in items for caption in captions]
    with open(folder / "pictures.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([("filepath", "title"), *rows])
    return folder / "pictures.csv"


def coco(folder: Path, items: list[Item]) -> Path:
    write_pictures(folder / "train2017", items)
    images = [{"id": 100 + index, "file_name": f"{stem}.jpg", "height": 20} for index, (stem, _, _) in enumerate(items)]
    annotations = [{"id": 0, "image_id": 100 + index, "caption": caption} for index, (_, _, texts) in enumerate(items) for caption in texts]
    (folder / "annotations").mkdir()
    content = json.dumps({"info": {}, "licenses": [], "images": images, "annotations": annotations})
    (folder / "annotations" / "captions_train2017.json").write_text(content, encoding="utf-8")
    return folder


def cub(folder: Path, items: list[Item]) -> Path:
    write_pictures(folder / "CUB_200_2011" / "images" / "001.Albatross", items)
    (folder / "text" / "001.Albatross").mkdir(parents=True)
    for stem, _, captions in items:
        (folder / "text" / "001.Albatross" / f"{stem}.txt").write_text("\n".join(captions), encoding="utf-8")
    for side, names in (("train", [f"001.Albatross/{stem}" for stem, _, _ in items]), ("test", [])):
        (folder / side).mkdir()
        (folder / side / "filenames.pickle").write_bytes(pickle.dumps(names, protocol=0))
    return folder


def stylegan(folder: Path, items: list[Item]) -> Path:
    write_pictures(folder / "00000", items)
    labels = [[f"00000/{stem}.jpg", one_or_list(captions)] for stem, _, captions in items]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
    return folder


# Files of each format's folder that are read; in those of img2dataset, statistics and lists lie beside.
USED = {
    **dict.fromkeys(("metadata_jsonl", "metadata_csv", "metadata_parquet", "openclip_csv", "coco", "stylegan"), COUNT + 1),
    **dict.fromkeys(("pairs", "caption_files"), 2 * COUNT),
    "cub": 2 * COUNT + 2,
    "webdataset_tars": 3,
    "json_in_tar": 1,
    "img2dataset_tars": 2,
    "img2dataset_parquet": 2,
    "hub_parquet": 1,
}
STRAYS = ("lonely.png", "phone.heic", "notes.md", "old.zip", "LICENSE", "deep/er/x.npy", "captions_draft.json", "dataset.json", "a.pickle")

# (format that must be detected, what makes it, by which library, whether a picture may have several captions)
FORMATS: list[tuple[str, Callable[[Path, list[Item]], Any], str, bool]] = [
    ("imagefolder", metadata_jsonl, "json", True),
    ("imagefolder", metadata_csv, "csv", False),
    ("imagefolder", metadata_parquet, "pyarrow", True),
    ("pairs", pairs, "files", True),
    ("pairs", caption_files, "files", True),
    ("tars", webdataset_tars, "webdataset", True),
    ("tars", brace_pattern, "webdataset", True),
    ("tars", json_in_tar, "tarfile", True),
    ("tars", img2dataset_tars, "img2dataset", False),
    ("parquet", img2dataset_parquet, "img2dataset", False),
    ("parquet", hub_parquet, "datasets", True),
    ("hf", dataset_object, "datasets", True),
    ("openclip", openclip_csv, "csv", True),
    ("coco", coco, "json", True),
    ("cub", cub, "pickle", True),
    ("stylegan", stylegan, "json", True),
]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """By the number of captions: the fingerprint of the plainest format."""
    folder = tmp_path_factory.mktemp("expected")
    sources = {captions: metadata_jsonl(folder / str(captions), make_items(captions)) for captions in (1, 3)}
    return {n: pack(source, folder / f"packed{n}", 16, ALL_TRAINED, progress=False).fingerprint for n, source in sources.items()}


CASES = [(*case, captions) for *case, several in FORMATS for captions in ((1, 3) if several else (1,))]


def test_every_format_is_tested_and_can_be_named():
    names = [reader.name for reader in READERS]
    assert ["auto", *names] == list(get_args(Format))
    # icons are drawn, not decoded: test_iconify.py
    assert {name for name, _, _, _ in FORMATS} == {"hf", *names} - {"iconify"}


@pytest.mark.parametrize(("name", "make", "library", "captions"), CASES, ids=[f"{make.__name__}-{n}" for _, make, _, n in CASES])
def test_every_format_gives_the_same_fingerprint(tmp_path, expected, name, make, library, captions):
    source = make(tmp_path / "data", make_items(captions))
    packed = pack(source, tmp_path / "packed", 16, ALL_TRAINED, progress=False)
    assert len(packed) == COUNT
    assert packed.fingerprint == expected[captions]
    if name == "hf":
        return
    named = ALL_TRAINED.model_copy(update={"format": name})
    assert pack(source, tmp_path / "named", 16, named, progress=False).fingerprint == expected[captions]
    if (tmp_path / "data").is_dir() and make is not brace_pattern:
        archive = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path, "data")
        assert pack(Path(archive), tmp_path / "zipped", 16, ALL_TRAINED, progress=False).fingerprint == expected[captions]
    if captions == 1:
        notes = "; ".join(packed.report.notes)
        print(f"| {make.__name__.replace('_', ' ')} | `{name}` | {library} | {notes} |")


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("make", [make for _, make, _, _ in FORMATS if make.__name__ in USED], ids=lambda make: make.__name__)
def test_every_file_is_used_or_counted(tmp_path, make, zipped):
    folder = tmp_path / "data"
    make(folder, make_items(1))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    strays = [name for name in STRAYS if name not in names]
    for name in strays:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    reading = read(Path(shutil.make_archive(str(tmp_path / "all"), "zip", folder)) if zipped else folder)
    assert len(reading.records) == COUNT
    # parts of samples are members of tars, not files
    members = COUNT if make is img2dataset_tars else 0
    counted = len([item for item in reading.bad if "could not fetch" not in item.why]) + reading.unused.total() - members
    assert USED[make.__name__] + counted == len(names) + len(strays)
    assert len(strays) <= counted
