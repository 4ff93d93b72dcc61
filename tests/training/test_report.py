"""The records of a run, read back with TensorBoard's own reader, and after an interruption."""

import io
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from gan_t2i.checkpoint import read_info
from gan_t2i.core.config import read_yaml
from gan_t2i.runs import RunFolder, list_runs, new_run
from gan_t2i.training.config import TrainConfig

TICKS = [8, 16, 20, 24, 32, 40]  # every stats_kimg, and with every snapshot
Start = Callable[..., tuple[RunFolder, int | None]]


def read_events(folder: RunFolder) -> EventAccumulator:
    events = EventAccumulator(str(folder.path), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return events.Reload()


def test_scalars(trained: RunFolder) -> None:
    events = read_events(trained)
    tags = set(events.Tags()["scalars"])
    expected = {f"Loss/{kind}/{pair}" for kind in ("scores", "signs") for pair in ("real", "fake", "mismatched")}
    expected |= {"Loss/G/loss", "Loss/D/loss", "Loss/D/mismatch", "Loss/r1_penalty", "Loss/r2_penalty", "Gradient/G", "Gradient/D"}
    expected |= {"Progress/kimg", "Progress/lr_g", "Progress/lr_d", "Timing/img_per_sec", "Timing/sec_per_kimg"}
    expected |= {"Resources/peak_memory_gib", "Text/match_gap"}
    assert expected <= tags
    records = {record["nimg"]: record for record in map(json.loads, trained.stats.read_text(encoding="utf-8").splitlines())}
    assert list(records) == TICKS
    for tag in expected - {"Loss/r1_penalty", "Loss/r2_penalty"}:
        assert [event.step for event in events.Scalars(tag)] == TICKS
        assert [event.value for event in events.Scalars(tag)] == pytest.approx([record[tag] for record in records.values()])
    # the penalty's first, fifth and ninth step
    assert [event.step for event in events.Scalars("Loss/r1_penalty")] == [8, 20, 40]
    last = records[40]
    assert last["Progress/kimg"] == 0.04
    assert last["Progress/lr_g"] == 3e-4
    assert last["Timing/img_per_sec"] > 0
    assert 0.1 < last["Resources/peak_memory_gib"] < 100
    assert -1 <= last["Loss/signs/fake"] <= 1


def test_means_are_over_the_steps_since_the_last_tick(make_session: Callable[..., Any], trained: RunFolder) -> None:
    session = make_session()
    means = [sum(session.run_step(nimg + part)["Loss/D/loss"].item() for part in (0, 4)) / 2 for nimg in (0, 8)]
    written = [event.value for event in read_events(trained).Scalars("Loss/D/loss")][:2]
    assert written == pytest.approx(means, rel=1e-4)


def test_pictures(trained: RunFolder) -> None:
    images = read_events(trained).Images("Samples/ema")
    assert [image.step for image in images] == [0, 20, 40]
    for image in images:
        shown = Image.open(io.BytesIO(image.encoded_image_string))
        assert np.array_equal(np.asarray(shown), np.asarray(Image.open(trained.grid(image.step))))
    assert not np.array_equal(np.asarray(Image.open(trained.grid(0))), np.asarray(Image.open(trained.grid(40))))


def test_config_and_hparams(trained: RunFolder, small_config: Callable[..., Any]) -> None:
    events = read_events(trained)
    (text,) = events.Tensors("config/text_summary")
    assert '"channel_max": 16' in text.tensor_proto.string_val[0].decode()
    contents = events.PluginTagToContent("hparams")
    hparams = HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info.hparams
    assert hparams["batch"].number_value == 4
    assert hparams["generator.params.channel_max"].number_value == 16
    assert hparams["loss"].string_value == "relativistic"


def test_run_folder(trained: RunFolder, small_config: Callable[..., Any]) -> None:
    files = {path.relative_to(trained.path).as_posix() for path in trained.path.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert trained.path.name == "00000-small-shapes"
    assert files - {"good.safetensors"} == {  # there where D told the few last pictures apart
        "config.yaml",
        "stats.jsonl",
        "state.safetensors",
        *(f"grids/grid-{nimg:09d}.png" for nimg in (0, 20, 40)),
        *(f"snapshots/snapshot-{nimg:09d}.safetensors" for nimg in (20, 40)),
    }
    assert len(list(trained.path.glob("events.out.tfevents.*"))) == 1
    assert trained.snapshots() == [trained.snapshot(20), trained.snapshot(40)]
    assert TrainConfig.parse(read_yaml(trained.config)) == TrainConfig.parse(small_config())


def test_a_model_of_a_built_in_set_knows_its_words(start: Start, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan_t2i.data.batches.resolve_source", lambda *_: pictures)
    cards = {}
    for source in ("shapes", str(pictures)):
        run, _ = start(data={"source": source}, kimg=0.004, resume="never")
        cards[source] = read_info(run.snapshots()[-1]).card
    assert cards[str(pictures)] is None  # words of people's captions stay with them
    card = cards["shapes"]
    assert card is not None
    assert (card.example, card.unknown_words("an orange teapot on white")) == ("a red circle", ["orange", "teapot"])


def test_runs_are_numbered(tmp_path: Path) -> None:
    for name in ("00007-old", "notes", "123-x", "0000a-y"):
        (tmp_path / name).mkdir()
    (tmp_path / "00099-file").write_text("no folder")
    assert new_run(tmp_path, "Größe: 64 / neu!").path.name == "00008-größe-64-neu"
    assert new_run(tmp_path, "x").path.name == "00009-x"
    assert new_run(tmp_path / "deep" / "er", "x").path == tmp_path / "deep" / "er" / "00000-x"
    assert [run.path.name for run in list_runs(tmp_path)] == ["00007-old", "00008-größe-64-neu", "00009-x"]
    assert list_runs(tmp_path / "missing") == []


@pytest.mark.parametrize("nimg", [28, 12], ids=["after the first state", "before it"])
def test_no_step_appears_twice(
    start: Start, signal_after: Callable[..., None], next_second: Callable[[], None], trained: RunFolder, tmp_path: Path, nimg: int
) -> None:
    """Records past the last state give way to those of the next attempt."""
    signal_after(nimg, signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):
        start()
    (folder,) = list_runs(tmp_path / "runs")
    nimgs = [json.loads(line)["nimg"] for line in folder.stats.read_text(encoding="utf-8").splitlines()]
    assert nimgs == [tick for tick in TICKS if tick <= nimg]
    with folder.stats.open("a") as file:
        file.write('{"nimg": 24, "Loss')  # torn by a crash
    next_second()
    assert start() == (folder, None)
    records = [json.loads(line) for line in folder.stats.read_text(encoding="utf-8").splitlines()]
    assert [record["nimg"] for record in records] == TICKS
    events, expected = read_events(folder), read_events(trained)
    assert events.Tags()["scalars"] == expected.Tags()["scalars"]
    for tag in ("Loss/G/loss", "Loss/r1_penalty", "Timing/img_per_sec", "Text/match_gap", "Progress/kimg"):
        assert [event.step for event in events.Scalars(tag)] == [event.step for event in expected.Scalars(tag)]
    assert [event.step for event in events.Images("Samples/ema")] == [0, 20, 40]
