import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data import packing, partial
from gan_t2i.data.decode import decode_image
from gan_t2i.data.packing import PackedDataset, load_dataset, pack
from gan_t2i.data.records import Record
from gan_t2i.data.settings import DataSettings


def make_data(folder: Path, count: int = 6, size: int = 16) -> Path:
    """Write `count` pictures of a single colour with a caption each."""
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.new("RGB", (size, size), (index * 10, 0, 255 - index)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture {index}", encoding="utf-8")
    return folder


@pytest.fixture
def source(tmp_path):
    return make_data(tmp_path / "data")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packed"


# Packing


def test_a_packed_folder_holds_pictures_captions_splits_extras_and_counts(tmp_path, source):
    rows = [
        {"file_name": "2.png", "text": ["two", "a picture"], "split": "train", "shape": {"n": 2}},
        {"file_name": "0.png", "text": "zero", "split": "heldout"},
        {"file_name": "1.png", "text": ["a picture", "one"], "split": "train"},
        {"file_name": "gone.png", "text": "x"},
    ]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    dataset = pack(source, tmp_path / "packed", 16, progress=False)
    assert dataset.resolution == 16
    assert len(dataset) == 3
    assert isinstance(dataset.images, np.memmap)
    assert dataset.images.shape == (3, 3, 16, 16)
    assert dataset.images[:, 0, 0, 0].tolist() == [20, 0, 10]
    assert dataset.captions == ["two", "a picture", "zero", "one"]
    assert dataset.caption_ids == [(0, 1), (2,), (1, 3)]
    assert dataset.train.tolist() == [0, 2]
    assert dataset.heldout.tolist() == [1]
    assert dataset.train.dtype == dataset.heldout.dtype == np.int64
    assert dataset.extras == [{"shape": {"n": 2}}, {}, {}]
    assert str(dataset.report).splitlines() == [
        "3 usable pairs, 5 captions; 1 pair held out",
        'captions from column "text" of metadata.jsonl',
        "not used in the format imagefolder: .txt 6 (0.txt), .png 3 (3.png)",
        "1 left out: missing image 1",
        "  metadata.jsonl:4: 'gone.png' does not exist",
    ]
    with pytest.raises(ValueError, match="read-only"):
        dataset.images[0] = 0


def test_gather_copies_pictures_in_the_given_order(tmp_path, source):
    dataset = pack(source, tmp_path / "packed", 16, progress=False)
    for indices in ([3, 0, 3], np.array([3, 0, 3]), torch.tensor([3, 0, 3])):
        batch = dataset.gather(indices)
        assert batch.dtype == torch.uint8
        assert batch.shape == (3, 3, 16, 16)
        assert batch[:, 0, 5, 5].tolist() == [30, 0, 30]
    batch.zero_()
    assert dataset.images[3, 0, 0, 0] == 30


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path):
    source = make_data(tmp_path / "data", 0)
    rng = np.random.default_rng(0)
    for index in range(150):
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(source / f"{index}.{('png', 'jpg')[index % 2]}")
        (source / f"{index}.txt").write_text(f"noise {index}", encoding="utf-8")
    one = pack(source, tmp_path / "one", 16, progress=False, workers=1)
    four = pack(source, tmp_path / "four", 16, progress=False, workers=4)
    for name in (packing.IMAGES, packing.META):
        assert (one.folder / name).read_bytes() == (four.folder / name).read_bytes()
    assert one.fingerprint == four.fingerprint


def test_the_fingerprint_changes_with_pictures_captions_and_splits(tmp_path, source):
    prints = [pack(source, tmp_path / "p0", 16, progress=False).fingerprint]
    prints.append(pack(source, tmp_path / "p1", 16, DataSettings(holdout_fraction=0), progress=False).fingerprint)
    (source / "0.txt").write_text("another", encoding="utf-8")
    prints.append(pack(source, tmp_path / "p2", 16, progress=False).fingerprint)
    Image.new("RGB", (16, 16), "white").save(source / "1.png")
    prints.append(pack(source, tmp_path / "p3", 16, progress=False).fingerprint)
    assert len(set(prints)) == 4
    assert all(len(text) == 64 for text in prints)


def test_the_progress_bar_is_on_stderr_and_can_be_silenced(tmp_path, source, capsys):
    pack(source, tmp_path / "p0", 16, progress=False)
    assert capsys.readouterr() == ("", "")
    pack(source, tmp_path / "p1", 16)
    out, err = capsys.readouterr()
    assert out == ""
    assert "packing" in err


@pytest.mark.parametrize("resolution", [0, 8, 24, 1024, -16])
def test_the_resolution_must_be_a_power_of_two(tmp_path, source, resolution):
    for call in (lambda: pack(source, tmp_path / "p", resolution), lambda: load_dataset(source, resolution)):
        with pytest.raises(UsageError, match=f"resolution must be a power of two from 16 to 512, not {resolution}"):
            call()


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_the_holdout_fraction_is_checked(fraction):
    with pytest.raises(UsageError, match="config key holdout_fraction = "):
        DataSettings.parse({"holdout_fraction": fraction})


def test_a_destination_in_use_is_left_alone(tmp_path, source):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine", encoding="utf-8")
    for data in (source, "hf:nobody/nothing"):  # before anything is read
        with pytest.raises(UsageError, match="used exists and is not empty"):
            pack(data, tmp_path / "used", 16, progress=False)
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["mine.txt"]


@pytest.fixture
def stop_at(monkeypatch):
    """Make the decoding of the n-th picture from now on raise KeyboardInterrupt; returns the list of pictures that are loaded."""

    def arrange(n):
        calls = []

        def load(record, *arguments):
            calls.append(record.name)
            if len(calls) == n:
                raise KeyboardInterrupt
            return decode_image(record, *arguments)

        monkeypatch.setattr(packing, "decode_image", load)
        monkeypatch.setattr(packing, "CHUNK", 1)
        return calls

    return arrange


def test_an_interrupted_pack_resumes_and_gives_the_same(tmp_path, source, stop_at):
    (source / "1.png").write_bytes(b"no picture")
    Image.new("RGBA", (20, 16)).save(source / "0.png")
    whole = pack(source, tmp_path / "whole", 16, progress=False)
    assert "transparent: 1 of 5 pictures; drawn on white; --alpha keeps it" in whole.report.notes
    stop_at(4)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "packed", 16, progress=False, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".packed.partial", "data", "whole"]
    loaded = stop_at(0)
    again = pack(source, tmp_path / "packed", 16, progress=False, workers=1)
    assert loaded == ["3.png", "4.png", "5.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "packed", "whole"]
    for name in (packing.IMAGES, packing.META):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_few_results_wait_and_work_ends_with_the_reader(monkeypatch):
    """The reader of a thousand records takes one result and closes."""
    records = [Record(Path(f"/{number}.png"), ("a",), "a") for number in range(1000)]
    worked, begun = [], threading.Event()

    def work(record):
        worked.append(record.image.stem)
        if len(worked) > packing.CHUNK * packing.CHUNKS_WAITING:
            begun.wait(10)
        return int(record.image.stem)

    results = packing.map_in_threads(records, work, 1)
    assert next(results) == 0
    begun.set()
    results.close()
    assert len(worked) <= packing.CHUNK * (packing.CHUNKS_WAITING + 1)
    assert list(packing.map_in_threads(records, lambda record: int(record.image.stem), 3)) == list(range(1000))


NO_SPACE = """
import resource, sys
from gan_t2i.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
sys.argv = ["gan-t2i", "data", "pack", *sys.argv[1:], "--resolution", "16"]
main()
"""


def test_a_full_disk_gives_one_sentence_and_leaves_nothing(tmp_path):
    source = make_data(tmp_path / "data", 80)
    result = subprocess.run(
        [sys.executable, "-c", NO_SPACE, str(source), str(tmp_path / "packed")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert f"Error: cannot write {tmp_path / 'packed'}: File too large; 0 MB are needed: free some space" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


TERMINATED = """
import os, signal, sys
from pathlib import Path
from gan_t2i.data import packing
decode_image, loaded = packing.decode_image, []
def load(*given):
    loaded.append(given)
    if len(loaded) == 70:
        os.kill(os.getpid(), signal.SIGTERM)
    return decode_image(*given)
packing.decode_image = load
packing.pack(sys.argv[1], Path(sys.argv[2]), 16, progress=False, workers=1)
"""


def test_sigterm_saves_progress_like_ctrl_c(tmp_path, monkeypatch):
    """Some pictures are done when the 70th is loaded: a thread decodes a chunk at a time, and few chunks wait."""
    source = make_data(tmp_path / "data", 80)
    whole = pack(source, tmp_path / "whole", 16, progress=False)
    result = subprocess.run([sys.executable, "-c", TERMINATED, str(source), str(tmp_path / "packed")], stderr=subprocess.PIPE, check=False)
    assert result.returncode == -signal.SIGTERM, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [".packed.partial", "data", "whole"]
    loaded = []
    load = packing.decode_image
    monkeypatch.setattr(packing, "decode_image", lambda image, *rest: loaded.append(image) or load(image, *rest))
    packed = pack(source, tmp_path / "packed", 16, progress=False)
    assert packed.fingerprint == whole.fingerprint
    assert 80 - 70 <= len(loaded) < 80
    assert not (tmp_path / ".packed.partial").exists()


def _spoil_state(folder: Path) -> None:
    (folder / partial.STATE).write_text('{"key": 3}', encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        lambda source, saved: (source / "0.txt").write_text("another caption", encoding="utf-8"),
        lambda source, saved: (saved / packing.IMAGES).write_bytes(b"short"),
        lambda source, saved: (saved / partial.STATE).unlink(),
        lambda source, saved: _spoil_state(saved),
    ],
)
def test_progress_of_other_data_or_damaged_is_not_resumed(tmp_path, source, stop_at, change):
    stop_at(4)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "packed", 16, progress=False, workers=1)
    change(source, tmp_path / ".packed.partial")
    loaded = stop_at(0)
    again = pack(source, tmp_path / "packed", 16, progress=False, workers=1)
    assert len(loaded) == 6
    assert again.fingerprint == pack(source, tmp_path / "whole", 16, progress=False).fingerprint
    assert not (tmp_path / ".packed.partial").exists()


def test_half_a_picture_at_the_end_of_the_saved_file_is_cut_off(tmp_path, source, stop_at):
    stop_at(4)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "packed", 16, progress=False, workers=1)
    with open(tmp_path / ".packed.partial" / packing.IMAGES, "ab") as file:
        file.write(b"half")
    stop_at(0)
    again = pack(source, tmp_path / "packed", 16, progress=False, workers=1)
    assert again.fingerprint == pack(source, tmp_path / "whole", 16, progress=False).fingerprint


def test_settings_that_change_pictures_or_captions_have_their_own_cache(source, cache):
    changes = [{}, {"crop": "pad"}, {"background": "black"}, {"caption_lines": "first"}, {"format": "pairs"}]
    folders = [load_dataset(source, 16, DataSettings(**change), progress=False).folder for change in changes]
    assert len(set(folders)) == len(changes)


def test_a_zip_is_packed_again_only_after_it_changes(source, tmp_path, cache):
    import shutil

    archive = Path(shutil.make_archive(str(tmp_path / "a"), "zip", source))
    first = load_dataset(archive, 16, progress=False)
    (tmp_path / "another file").write_text("x", encoding="utf-8")
    assert load_dataset(archive, 16, progress=False).folder == first.folder
    (source / "0.txt").write_text("another caption", encoding="utf-8")
    shutil.make_archive(str(tmp_path / "a"), "zip", source)
    assert "another caption" in load_dataset(archive, 16, progress=False).captions


def test_no_usable_picture_leaves_nothing_behind(tmp_path):
    source = make_data(tmp_path / "data", 2)
    for index in range(2):
        (source / f"{index}.png").write_bytes(b"no picture")
    with pytest.raises(GanT2IError, match=r"none of its 2 images can be used \(first fault: 0.txt \(0.png\): the file is not one of"):
        pack(source, tmp_path / "packed", 16, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def _edit_meta(folder: Path, **changes) -> None:
    meta = json.loads((folder / packing.META).read_text(encoding="utf-8"))
    meta = {key: value for key, value in {**meta, **changes}.items() if value is not None}
    (folder / packing.META).write_text(json.dumps(meta), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / packing.META).unlink(), "cannot be opened: meta.json: No such file or directory"),
        (lambda f: (f / packing.IMAGES).unlink(), "cannot be opened: images.u8: No such file or directory"),
        (lambda f: (f / packing.META).write_text("{"), "is damaged: meta.json is not JSON; remove the folder and pack again"),
        (lambda f: (f / packing.META).write_text("[]"), "has format version None, not 1; remove the folder and pack again"),
        (lambda f: _edit_meta(f, format_version=0), "has format version 0, not 1; remove the folder and pack again"),
        (lambda f: _edit_meta(f, captions=None), "is damaged: meta.json lacks 'captions'; remove the folder and pack again"),
        (lambda f: (f / packing.IMAGES).write_bytes(b"\0" * 767), "is damaged: images.u8 has 767 bytes, not 768; remove the folder"),
    ],
)
def test_a_damaged_packed_folder_is_refused_with_one_sentence(tmp_path, spoil, message):
    folder = pack(make_data(tmp_path / "data", 1), tmp_path / "packed", 16, progress=False).folder
    spoil(folder)
    with pytest.raises(GanT2IError) as error:
        PackedDataset.open(folder)
    assert str(error.value).startswith(f"packed data {folder} {message}")


# The cache


def test_data_are_packed_once_and_again_after_a_change(source, cache, said):
    first = load_dataset(source, 16, progress=False)
    assert "packing" in said[0]
    assert said[1].startswith("6 usable pairs")
    said.clear()
    again = load_dataset(source, 16, progress=False)
    assert again.folder == first.folder
    assert len(said) == 1
    assert "packed before" in said[0]
    (source / "0.txt").write_text("another caption", encoding="utf-8")
    changed = load_dataset(source, 16, progress=False)
    assert changed.folder != first.folder
    assert "another caption" in changed.captions
    others = [load_dataset(source, 32, progress=False), load_dataset(source, 16, DataSettings(holdout_fraction=0.5), progress=False)]
    assert len({dataset.folder for dataset in [first, changed, *others]}) == 4
    assert len(list(cache.iterdir())) == 4


def test_the_loser_of_a_race_uses_the_winners_folder(source, monkeypatch):
    folders = []
    original = packing.write_images

    def slow(path, *args):
        # While this process decodes, another one finishes.
        monkeypatch.setattr(packing, "write_images", original)
        folders.append(load_dataset(source, 16, progress=False).folder)
        return original(path, *args)

    monkeypatch.setattr(packing, "write_images", slow)
    dataset = load_dataset(source, 16, progress=False)
    assert [dataset.folder] == folders
    assert [path.name for path in dataset.folder.parent.iterdir()] == [dataset.folder.name]
    assert len(dataset) == 6


def test_a_packed_folder_is_a_source_at_its_resolution(tmp_path, source):
    packed = pack(source, tmp_path / "packed", 16, progress=False)
    assert load_dataset(tmp_path / "packed", 16).fingerprint == packed.fingerprint
    with pytest.raises(UsageError, match=r"resolution must be 16, at which .*packed is packed, not 32"):
        load_dataset(tmp_path / "packed", 32)
    with pytest.raises(UsageError, match=r"packed is packed already: train on it as it is"):
        pack(tmp_path / "packed", tmp_path / "again", 32, progress=False)


def test_a_missing_source(tmp_path):
    with pytest.raises(UsageError, match="gone does not exist"):
        load_dataset(tmp_path / "gone", 16)
