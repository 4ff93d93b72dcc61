"""Measuring a config on a few pictures: with whatever they are, and without a trace."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.files import cache_dir
from gan_t2i.data.packing import pack
from gan_t2i.data.readers import read
from gan_t2i.doctor import dry_run
from gan_t2i.doctor.dry_run import examples_of, measure_pace, pace_on
from gan_t2i.text import weights
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session, prepare


def test_pictures_with_one_caption_can_be_measured(
    small_config: Callable[..., dict[str, Any]], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("gan_t2i.text.cache.cache_key")  # for that the encoder's library would be loaded, which takes longer than the steps
    records = [replace(record, captions=("the same",), split=None) for record in read(pictures).records[:3]]
    before = sorted(cache_dir().rglob("*"))
    found = pace_on(TrainConfig.parse(small_config(kimg=6)), records)
    assert sorted(cache_dir().rglob("*")) == before
    assert found.batch == 4
    assert found.steps % 4 == 0  # whole intervals of the penalty
    assert f"{found.rate:.0f} img/s, {100 / found.rate:.0f} minutes for 6 kimg" in str(found)


def test_pretraining_counts_by_the_pictures_that_it_shows(small_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = small_config()["generator"]
    with_layout = {**generator, "params": {**generator["params"], "local_styles": True, "layout": True}}
    terms = {"layout": {"localizer_kimg": 60, "kimg": 30, "batch": 8}, "caption": {"weight": 1, "kimg": 120, "batch": 4}}
    session = prepare(TrainConfig.parse(small_config(generator=with_layout, terms=terms)), measured=True)
    monkeypatch.setattr(Session, "run_step", lambda session, nimg: {})
    shown = []

    def layout(*arguments: Any) -> None:
        shown.append(("layout", arguments[1].localizer_kimg * 1000, arguments[1].kimg * 1000))

    monkeypatch.setattr("gan_t2i.pretraining.layout.pretrain", layout)
    monkeypatch.setattr("gan_t2i.pretraining.captioner.pretrain", lambda *arguments: shown.append(("caption", arguments[1].kimg * 1000)))
    times = {"caption": [0, 1, 10, 11, 20, 23], "layout": [0, 3, 10, 13, 20, 33]}  # two for 32 pictures, and ten for 64
    seconds = iter([0, 1, *times["caption"], *times["layout"]])
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    pace = measure_pace(session)
    assert {name: round(minutes, 1) for name, minutes in pace.pretraining.items()} == {"caption": 125.0, "layout": 156.2}
    assert str(pace).splitlines()[1:] == [
        "pretraining before the run, once for these data: caption, 125.0 minutes",
        "pretraining before the run, once for these data: layout, 156.2 minutes",
    ]
    assert [(name, *map(round, lengths)) for name, *lengths in shown] == [
        *[("caption", 8)] * 2,
        ("caption", 40),
        *[("layout", 16, 8)] * 2,
        ("layout", 80, 40),
    ]


def test_the_decoder_s_lesson_counts_as_time_after_the_run(
    small_config: Callable[..., dict[str, Any]], many_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder = {"name": "conv", "params": {"factor": 2, "width": 8, "kimg": 0.96, "batch": 16}}
    values = small_config(autoencoder=autoencoder, decoder={"kimg": 0.12}, data={"source": str(many_pictures)})
    session = prepare(TrainConfig.parse(values), measured=True)
    seconds = iter([0, 1, 0, 8, 0, 16])  # steps of the game, eight of the autoencoder, and eight of the decoder
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    assert str(measure_pace(session)).splitlines()[1:] == [
        "pretraining before the run, once for these data: autoencoder, 1.0 minutes",
        "after the run: decoder, 1.0 minutes",
    ]


@pytest.mark.parametrize("packed", [True, False])
def test_examples_are_spread_over_the_data(many_pictures: Path, tmp_path: Path, packed: bool) -> None:
    source = pack(many_pictures, tmp_path / "packed", 16).folder if packed else many_pictures
    captions = [record.captions[0] for record in examples_of(TrainConfig.parse({"data": {"source": str(source)}, "resolution": 16}))]
    assert len(captions) == 12
    assert captions[0].split()[0] == "tone0"
    assert captions[-1].split()[0] > "tone180"


def test_broken_pictures_are_left_out_of_the_measurement(small_config: Callable[..., dict[str, Any]], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    records = read(pictures).records[:2]
    assert pace_on(TrainConfig.parse(small_config()), [replace(records[0], image=tmp_path / "broken.png"), *records]).rate > 0


def test_an_encoder_that_is_not_here_is_not_downloaded_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig()
    config = TrainConfig.parse(config.model_dump())
    without_download = dry_run._without_download
    monkeypatch.setattr(weights, "find_local", lambda: object())
    assert without_download(config) is config
    monkeypatch.setattr(weights, "find_local", lambda: None)
    assert without_download(config).text_encoder.name == "tiny"
    own = TrainConfig.parse({"text_encoder": {"params": {"model": "folder"}}})
    assert without_download(own) is own


def test_what_does_not_fit_into_memory_is_one_sentence(
    small_config: Callable[..., dict[str, Any]], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(session: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(dry_run, "measure_pace", full)
    with pytest.raises(GanT2IError, match="4 pictures at once do not fit into memory: raise accumulation"):
        pace_on(TrainConfig.parse(small_config()), read(pictures).records[:2])
