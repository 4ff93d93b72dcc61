"""`datasets.Dataset` objects, and hf:owner/name with the library's loader replaced: no test uses the network."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data.builtin import resolve_source
from gan_t2i.data.packing import load_dataset, pack
from gan_t2i.data.readers import hub, read
from gan_t2i.data.settings import DataSettings


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


def table(cells: list[Any], captions: list[Any], column: str = "text") -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), column: datasets.Value("string"), "label": datasets.Value("int64")})
    cells = [{"bytes": cell, "path": None} if isinstance(cell, bytes) else cell for cell in cells]
    return datasets.Dataset.from_dict({"image": cells, column: captions, "label": [0] * len(cells)}, features=features)


def test_a_dataset_is_packed_and_its_faults_counted(tmp_path):
    cells = [png("red"), png("blue"), b"no picture", png(), None]
    dataset = pack(table(cells, ["red", "blue", "broken", " ", "empty"]), tmp_path / "packed", 16, progress=False)
    assert dataset.captions == ["red", "blue"]
    assert dataset.images[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert dataset.report.bad == {"unreadable image": 2, "empty caption": 1}
    assert dataset.report.notes == ['captions from column "text", pictures from column "image"']


def test_pillow_pictures_and_a_caption_column(tmp_path):
    datasets = pytest.importorskip("datasets")
    source = datasets.Dataset.from_dict({"img": [Image.new("RGB", (16, 16), "lime")], "words": ["green"], "text": ["other"]})
    dataset = pack(source, tmp_path / "packed", 16, DataSettings(caption_column="words"), progress=False)
    assert dataset.captions == ["green"]
    assert dataset.images[0, :, 3, 3].tolist() == [0, 255, 0]
    with pytest.raises(UsageError, match=r"has no column nothing: .* --caption-column words or text "):
        read(source, DataSettings(caption_column="nothing"))


@pytest.mark.parametrize("path", ["{tmp}/mine.png", "/etc/hostname", "https://example.org/a.png", "../mine.png", "zip://a.png::/tmp/a.zip"])
def test_a_path_in_a_cell_of_the_hub_is_not_followed(tmp_path, path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "mine.png").write_bytes(png())
    source = table([png("blue"), {"bytes": None, "path": path.format(tmp=tmp_path)}], ["blue", "stolen"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name: source)
    dataset = pack("hf:owner/name", tmp_path / "packed", 16, progress=False)
    assert dataset.captions == ["blue"]
    assert dataset.report.bad == {"unreadable image": 1}
    assert load_dataset("hf:owner/name", 16, progress=False).captions == ["blue"]
    source.info.builder_name = "parquet"  # as after datasets.load_dataset("owner/name")
    assert pack(source, tmp_path / "again", 16, progress=False).captions == ["blue"]


def test_a_dataset_of_local_files_is_read_and_no_url_opened(tmp_path):
    datasets = pytest.importorskip("datasets")
    for name in ("red", "blue"):
        (tmp_path / f"{name}.png").write_bytes(png(name))
    cells = [str(tmp_path / "red.png"), str(tmp_path / "blue.png"), "https://example.org/a.png"]
    source = datasets.Dataset.from_dict({"image": cells, "text": ["red", "blue", "far"]}).cast_column("image", datasets.Image())
    dataset = pack(source, tmp_path / "packed", 16, progress=False)
    assert dataset.captions == ["red", "blue"]
    assert dataset.report.bad == {"unreadable image": 1}


def test_the_librarys_imagefolder_equals_ours(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    for name in ("blue", "red"):
        (tmp_path / f"data/{name}.png").write_bytes(png(name))
    rows = '{"file_name": "blue.png", "text": "a blue square"}\n{"file_name": "red.png", "text": "a red square"}\n'
    (tmp_path / "data/metadata.jsonl").write_text(rows, encoding="utf-8")
    source = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    theirs = pack(source, tmp_path / "theirs", 16, progress=False)
    assert theirs.fingerprint == pack(tmp_path / "data", tmp_path / "ours", 16, progress=False).fingerprint


def test_a_file_that_the_library_fetched_is_read(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "fetched")
    (tmp_path / "fetched").mkdir()
    (tmp_path / "fetched/a.png").write_bytes(png("lime"))
    source = table([{"bytes": None, "path": str(tmp_path / "fetched/a.png")}], ["green"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name: source)
    assert pack("hf:owner/name", tmp_path / "packed", 16, progress=False).images[0, 1, 0, 0] == 255


def test_a_name_is_loaded_once_and_its_splits_are_kept(tmp_path, monkeypatch, said):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path / "cache"))
    names = []

    def load(name: str) -> Any:
        names.append(name)
        return datasets.DatasetDict({"train": table([png()], ["red"]), "test": table([png("blue")], ["blue"])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert resolve_source("hf:owner/birds", 16) == "hf:owner/birds"
    first = load_dataset("hf:owner/birds", 16, progress=False)
    assert names == ["owner/birds"]
    assert (first.train.tolist(), first.heldout.tolist()) == ([0], [1])
    assert said[0].startswith("data: packing hf:owner/birds at 16 px")
    again = load_dataset("hf:owner/birds", 16, progress=False)
    assert again.folder == first.folder
    assert "packed before" in said[-1]


@pytest.mark.parametrize("name", ["hf:birds", "hf:", "hf:../a/b", "hf:/etc/x", "hf:a/b/c", "hf:owner/..", "hf:http://h/a"])
def test_only_owner_and_name_reach_the_library(name, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: pytest.fail("loaded"))
    with pytest.raises(UsageError, match="must be hf:owner/name"):
        read(name)


def test_a_local_folder_is_not_taken_for_a_name(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    with pytest.raises(UsageError, match="must be hf:owner/name, a data set of the hub"):
        read("hf:owner/name")


def test_errors_of_the_library_become_one_sentence(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(name: str) -> None:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(GanT2IError, match=r"^data hf:owner/name cannot be loaded: no network$"):
        read("hf:owner/name")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(GanT2IError, match=r"^data hf:owner/name needs the library datasets: pip install 'gan-t2i\[data\]'$"):
        read("hf:owner/name")


def test_any_other_object_is_refused():
    datasets = pytest.importorskip("datasets")
    with pytest.raises(UsageError, match="not dict"):
        read({"image": []})
    assert not hub.is_dataset("a")
    assert not hub.is_dataset(Path("a"))
    with pytest.raises(GanT2IError, match="data has no column of pictures; its columns are: a"):
        read(datasets.Dataset.from_dict({"a": ["x"]}))
