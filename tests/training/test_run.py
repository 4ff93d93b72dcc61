"""Which run a command goes on with, and when it refuses."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from gan_t2i.checkpoint import read_info, read_tensors
from gan_t2i.core.config import read_yaml
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data.packing import pack
from gan_t2i.runs import RunFolder, list_runs

Start = Callable[..., tuple[RunFolder, int | None]]
SHORT = {"kimg": 0.012, "report": {"stats_kimg": 1, "grid_kimg": 1, "snapshot_kimg": 1, "grid_prompts": 1, "grid_seeds": 1}}


@pytest.fixture
def stopped(start: Start, signal_after: Callable[..., None]) -> RunFolder:
    """A run of twelve pictures that was stopped after four."""
    signal_after(0)
    folder, stopped_by = start(**SHORT)
    assert stopped_by == signal.SIGTERM
    return folder


def nimg_of(folder: RunFolder) -> int:
    return int(read_tensors(folder.state)[1]["nimg"])


def test_auto_takes_an_unfinished_run_of_the_same_config(start: Start, stopped: RunFolder) -> None:
    other, _ = start(**SHORT, seed=5)
    assert other.path.name == "00001-small"
    assert nimg_of(stopped) == 4
    assert start(**SHORT) == (stopped, None)
    assert nimg_of(stopped) == 12
    # a finished one is not taken up again
    again, _ = start(**SHORT)
    assert again.path.name == "00002-small"
    assert nimg_of(again) == 12


def test_never_begins_anew(start: Start, stopped: RunFolder) -> None:
    assert start(resume="never", **SHORT)[0].path.name == "00001-small"
    assert nimg_of(stopped) == 4


@pytest.mark.parametrize("by_name", [True, False])
def test_a_finished_run_is_lengthened_by_name(start: Start, assert_same_state: Callable[..., None], tmp_path: Path, by_name: bool) -> None:
    folder, _ = start(**SHORT)
    longer = {**SHORT, "kimg": 0.02}
    assert start(resume=str(folder.path) if by_name else "latest", **longer, device="cpu") == (folder, None)
    assert nimg_of(folder) == 20
    assert read_yaml(folder.config)["kimg"] == 0.02
    assert_same_state(folder, start(outdir=tmp_path / "unbroken", **longer)[0])
    assert [run.path.name for run in list_runs(tmp_path / "runs")] == ["00000-small"]


@pytest.mark.parametrize("fault", ["is a file", "is not writable"])
def test_a_place_that_takes_no_run_is_refused_before_the_data_are_packed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    place = tmp_path / "place"
    if fault == "is a file":
        place.touch()
    else:
        place.mkdir()
        monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests may run as root, whom no mode stops
    monkeypatch.setattr("gan_t2i.training.run.prepare", None)
    with pytest.raises(UsageError, match=f"as .*place {fault}: give --outdir another folder"):
        start(outdir=place / "runs", **SHORT)


def test_a_raised_kimg_is_a_new_run_for_auto(start: Start) -> None:
    start(**SHORT)
    assert start(**{**SHORT, "kimg": 0.016})[0].path.name == "00001-small"


@pytest.mark.parametrize("changes", [{"seed": 1}, {"batch": 2}, {"optimizer": {"warmup_kimg": 0, "g_lr": 1e-3}}, {"precision": "float32"}])
def test_another_config_is_refused(start: Start, stopped: RunFolder, changes: dict[str, object]) -> None:
    (key,) = changes
    with pytest.raises(UsageError, match=rf"config\.yaml differs .* in more than kimg, report, evaluate and device: {key}\S* \(.+, not .+\)$"):
        start(resume=str(stopped.path), **SHORT, **changes)
    assert nimg_of(stopped) == 4


@pytest.mark.parametrize(
    ("name", "resume"), [("moved", "auto"), ("moved", "latest"), ("relative", "auto"), ("link", "auto"), ("packed", "auto")]
)
def test_the_same_data_by_another_name_are_the_same(
    start: Start, stopped: RunFolder, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, resume: str
) -> None:
    place = tmp_path / "place"
    if name == "link":
        place.symlink_to(pictures)
    elif name == "packed":
        pack(pictures, place, 16, progress=False)
    else:
        shutil.copytree(pictures, place)
    monkeypatch.chdir(tmp_path)
    source = "place" if name == "relative" else str(place)
    assert start(**SHORT, data={"source": source}, resume=resume) == (stopped, None)
    assert nimg_of(stopped) == 12
    assert read_yaml(stopped.config)["data"]["source"] == source


def test_the_same_settings_on_other_data_are_another_run(
    start: Start, stopped: RunFolder, many_pictures: Path, said: list[str], tmp_path: Path
) -> None:
    assert start(**SHORT, data={"source": str(many_pictures)})[0].path.name == "00001-small"
    assert f"{stopped.path} has these settings and other data: --resume {stopped.path} --changed-data goes on with it" in said
    with pytest.raises(GanT2IError, match="the data set is not the one"):
        start(**SHORT, data={"source": str(many_pictures)}, resume=str(stopped.path))


def test_a_run_to_begin_with_may_be_spelled_otherwise(
    start: Start, stopped: RunFolder, signal_after: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_after(0)
    folder, _ = start(**SHORT, init=str(stopped.path))
    monkeypatch.chdir(tmp_path)
    assert start(**SHORT, init=f"runs/{stopped.path.name}") == (folder, None)


@pytest.mark.parametrize("keep", [True, False])
def test_a_run_keeps_its_number_of_threads(start: Start, stopped: RunFolder, said: list[str], keep: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        start(**SHORT, keep_threads=keep)
        assert torch.get_num_threads() == (before if keep else before + 1)
    finally:
        torch.set_num_threads(before)
    expected = f"threads: {before}, as before" if keep else f"threads: {before + 1}, and {before} before, so the last bits differ"
    assert any(message.startswith(expected) for message in said)


def test_a_run_that_is_not_there_is_refused(start: Start, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="latest has no state to go on from; name a run folder, latest, auto or never"):
        start(resume="latest", **SHORT)
    with pytest.raises(UsageError, match="has no state to go on from"):
        start(resume=str(tmp_path / "nowhere"), **SHORT)
    assert not (tmp_path / "runs").exists()


def test_changed_data_is_refused(start: Start, signal_after: Callable[..., None], pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    changes = {**SHORT, "data": {"source": str(data)}}
    signal_after(0)
    folder, _ = start(**changes)
    state = folder.state.read_bytes()
    fingerprint = read_info(folder.snapshot(4)).data_fingerprint
    Image.new("RGB", (24, 24), "black").save(data / "red-circle.png")
    with pytest.raises(GanT2IError, match=f"not the one that .* was trained with .*{fingerprint[:12]}.*--resume never") as error:
        start(**changes)
    assert not isinstance(error.value, UsageError)
    assert folder.state.read_bytes() == state
    new, _ = start(**changes, resume="never")
    assert new != folder
    assert read_info(new.snapshots()[-1]).data_fingerprint != fingerprint
    # told to, it goes on with the new pictures, and says so in what it saves
    copy = tmp_path / "copy" / folder.path.name
    shutil.copytree(folder.path, copy)
    told = start(**changes, outdir=copy.parent, changed_data=True)
    assert told == (RunFolder(copy), None)
    assert nimg_of(told[0]) == 12
    assert read_info(told[0].snapshot(12)).data_fingerprint == read_info(new.snapshots()[-1]).data_fingerprint
    # put back, the first run goes on
    shutil.copy(pictures / "red-circle.png", data / "red-circle.png")
    assert start(**changes, resume=str(folder.path)) == (folder, None)
    assert nimg_of(folder) == 12


def test_a_damaged_state_is_refused(start: Start, stopped: RunFolder) -> None:
    whole = stopped.state.read_bytes()
    stopped.state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GanT2IError, match="damaged"):
        start(**SHORT)
    shutil.copy(stopped.snapshots()[-1], stopped.state)
    with pytest.raises(GanT2IError):
        start(**SHORT)
    stopped.state.write_bytes(whole)
    assert start(**SHORT) == (stopped, None)


def test_other_folders_are_left_alone(start: Start, tmp_path: Path) -> None:
    for name, text in (("00000-broken", "no: [yaml"), ("00001-old", "colour: blue\n"), ("00002-empty", None)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        if text is not None:
            (tmp_path / "runs" / name / "config.yaml").write_text(text)
    assert start(**SHORT)[0].path.name == "00003-small"
