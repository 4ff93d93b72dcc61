"""A run that is stopped or killed, and goes on by the same command, ends with the bits of one that was not."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import start_command

from gan_t2i.checkpoint import read_tensors
from gan_t2i.runs import RunFolder, list_runs
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.run import run_training
from gan_t2i.training.session import Session

AUGMENT = {"translation": 0.1, "cutout": 0.2, "brightness": 0.2, "saturation": 0.5}
TEXT_HEAD = {"width": 32, "layers": 1, "heads": 2}
SMALL = {"channel_base": 128, "channel_max": 16, "text_head": TEXT_HEAD}
CAPTIONER = {"weight": 1.0, "size": {"width": 16, "layers": 1, "heads": 2, "channel_base": 128, "channel_max": 16}, "kimg": 0.032, "batch": 8}
LAYOUT_G = {"name": "style", "params": {**SMALL, "w_width": 32, "z_width": 8, "local_styles": True, "layout": True}}
LAYOUT = {"localizer_kimg": 0.032, "kimg": 0.032, "batch": 8}
LATENTS = {"name": "conv", "params": {"factor": 2, "latent_channels": 6, "width": 16, "kimg": 0.08, "batch": 8}}
Start = Callable[..., tuple[RunFolder, int | None]]
SameState = Callable[[RunFolder, RunFolder], None]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulation": 2},
        {"penalty": {"interval": 2}},
        {"penalty": {"name": "finite_difference", "interval": 2}, "augment": AUGMENT, "precision": "bf16"},
        {"optimizer": {"warmup_kimg": 0.02}, "ema": {"half_life_kimg": 0.01, "ramp": 0}, "precision": "float32"},
        {"discriminator": {"name": "aligned", "params": SMALL}},
        {"terms": {"caption": CAPTIONER}, "accumulation": 2},
        {"generator": LAYOUT_G, "terms": {"layout": LAYOUT}},
        {"autoencoder": LATENTS},
    ],
    ids=["plain", "accumulation", "lazy penalty", "every draw", "schedules", "aligned", "captioner", "layout", "latents"],
)
def test_six_steps_are_three_and_three(
    start: Start,
    signal_after: Callable[..., None],
    assert_same_state: SameState,
    many_pictures: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    device: str,
) -> None:
    changes = {**changes, "kimg": 0.024, "device": device, "deterministic": device == "cuda"}
    if "autoencoder" in changes:
        changes["data"] = {"source": str(many_pictures)}
    unbroken, stopped_by = start(outdir=tmp_path / "unbroken", **changes)
    assert stopped_by is None
    signal_after(8)
    stopped, stopped_by = start(**changes)
    assert stopped_by == signal.SIGTERM
    assert read_tensors(stopped.state)[1]["nimg"] == 12
    resumed, stopped_by = start(**changes)
    assert (resumed, stopped_by) == (stopped, None)
    assert_same_state(resumed, unbroken)


def test_the_seed_decides_the_run(start: Start, tmp_path: Path) -> None:
    """Without this, a state that never changes would pass the test above."""
    first, _ = start(kimg=0.008)
    second, _ = start(kimg=0.008, seed=1)
    left, right = read_tensors(first.state)[0], read_tensors(second.state)[0]
    assert [name for name in left if left[name].ndim > 1 and torch.equal(left[name], right[name])] == []


def test_a_signal_that_comes_while_a_snapshot_is_due_is_not_lost(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    heldout_batch = Session.heldout_batch

    def signal_and_go_on(session: Session) -> object:
        monkeypatch.setattr(Session, "heldout_batch", heldout_batch)
        signal.raise_signal(signal.SIGTERM)
        return heldout_batch(session)

    monkeypatch.setattr(Session, "heldout_batch", signal_and_go_on)  # called at 8 images, when nothing is saved
    folder, stopped_by = start()
    assert stopped_by == signal.SIGTERM
    assert read_tensors(folder.state)[1]["nimg"] == 8  # and not a step later
    assert folder.snapshots() == [folder.snapshot(8)]


def test_a_second_interrupt_is_obeyed_at_once(start: Start, signal_after: Callable[..., None]) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal_after(24, signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):
        start()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# Forty steps, of which the first two are saved: enough for a signal to come in between.
LONG: dict[str, Any] = {
    "kimg": 0.16,
    "report": {"stats_kimg": 0.04, "grid_kimg": 1, "snapshot_kimg": 0.008, "grid_prompts": 1, "grid_seeds": 1},
}


@pytest.fixture(scope="module")
def unbroken(small_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_T2I_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        config = TrainConfig.parse(small_config(**LONG))
        return run_training(config, tmp_path_factory.mktemp("unbroken"), resume="never", description="long")[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_real_signal(
    number: signal.Signals, unbroken: RunFolder, small_config: Callable[..., Any], start: Start, assert_same_state: SameState, tmp_path: Path
) -> None:
    config, outdir, log = tmp_path / "long.yaml", tmp_path / "runs", tmp_path / "log"
    config.write_text(yaml.safe_dump(small_config(**LONG)), encoding="utf-8")
    process = start_command("train", "--config", config, "--outdir", outdir, log=log)
    while process.is_alive() and not list(outdir.glob("*/snapshots/snapshot-*.safetensors")):
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    output = log.read_text(encoding="utf-8")
    (folder,) = list_runs(outdir)
    if number == signal.SIGKILL:
        assert process.exitcode == -number
        assert folder.snapshots()[-1].name < "snapshot-000000160"
    else:
        assert process.exitcode == 128 + number, output
        nimg = read_tensors(folder.state)[1]["nimg"]
        assert 8 <= nimg < 160
        assert folder.snapshots()[-1] == folder.snapshot(nimg)
        assert f"stopped after {nimg} of 160 images; the same command resumes" in output
    assert start(**LONG) == (folder, None)
    assert_same_state(folder, unbroken)
