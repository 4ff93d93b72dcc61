"""Measuring a config on a few pictures: with whatever they are, and without a trace."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.readers import read
from gan_t2i.doctor import dry_run
from gan_t2i.doctor.dry_run import pace_on, pretraining_lines
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import prepare


def test_pictures_with_one_caption_can_be_measured(
    small_config: Callable[..., dict[str, Any]], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("gan_t2i.text.cache.cache_key")  # for that the encoder's library would be loaded, which takes longer than the steps
    records = [replace(record, captions=("the same",), split=None) for record in read(pictures).records[:3]]
    before = os.environ["GAN_T2I_CACHE"]
    found = pace_on(TrainConfig.parse(small_config(kimg=6)), records)
    assert os.environ["GAN_T2I_CACHE"] == before
    assert found.batch == 4
    assert found.steps == 4  # one interval of the penalty
    assert found.minutes == pytest.approx(100 / found.rate)
    assert f"{found.rate:.0f} img/s" in str(found)


def test_a_dry_run_counts_pretraining_by_its_images(small_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = small_config()["generator"]
    placed = {**generator, "params": {**generator["params"], "local_styles": True, "layout": True}}
    terms = {"layout": {"localizer_kimg": 60, "kimg": 30, "batch": 8}, "caption": {"weight": 1, "kimg": 120, "batch": 4}}
    session = prepare(TrainConfig.parse(small_config(generator=placed, terms=terms)), measured=True)
    shown = []

    def layout(*arguments: Any) -> None:
        settings = arguments[1]
        shown.append(("layout", round(settings.localizer_kimg * 1000, 6), round(settings.kimg * 1000, 6)))

    monkeypatch.setattr("gan_t2i.pretraining.layout.pretrain", layout)
    monkeypatch.setattr(
        "gan_t2i.pretraining.captioner.pretrain", lambda *arguments: shown.append(("caption", round(arguments[1].kimg * 1000, 6)))
    )
    seconds = iter([0, 0, 0, 1, 10, 13, 20, 20, 30, 33, 40, 53])  # caption: two for 32 pictures; layout: ten for 64
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: next(seconds))
    assert pretraining_lines(session) == [
        "pretraining before the run, once for these data: caption, 125.0 minutes",
        "pretraining before the run, once for these data: layout, 156.2 minutes",
    ]
    assert shown == [*[("caption", 8)] * 2, ("caption", 40), *[("layout", 16, 8)] * 2, ("layout", 80, 40)]


def test_what_does_not_fit_into_memory_is_one_sentence(
    small_config: Callable[..., dict[str, Any]], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(session: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(dry_run, "measure_pace", full)
    with pytest.raises(GanT2IError, match="4 pictures at once do not fit into memory: raise accumulation"):
        pace_on(TrainConfig.parse(small_config()), read(pictures).records[:2])
