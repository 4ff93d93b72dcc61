"""Two processes that train as one give what one process gives, stop together, and go on as any other number of them."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from processes import together

import gan_t2i.training.session as session_module
from gan_t2i.checkpoint import read_tensors
from gan_t2i.core.distributed import own_rows, rank
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.runs import RunFolder, list_runs
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.networks import Networks, build_networks
from gan_t2i.training.run import run_training
from gan_t2i.training.session import Session, prepare

Values = dict[str, Any]
Arrays = dict[str, np.ndarray]

AUGMENT = {"translation": 0.1, "cutout": 0.2, "brightness": 0.2, "saturation": 0.5}
EVERYTHING = {"fraction": 1, "interval": 2}
CAPTIONER = {"weight": 1, "size": {"width": 16, "layers": 1, "heads": 2, "channel_base": 128, "channel_max": 16}, "kimg": 0.032, "batch": 8}
# name -> (changes of the config for two processes, other changes for one process, parts of the networks that are frozen)
CASES: dict[str, tuple[Values, Values, tuple[str, ...]]] = {
    "no penalty": ({"penalty": {"r1_gamma": 0, "r2_gamma": 0}}, {}, ()),
    "lazy penalty": ({"penalty": EVERYTHING}, {}, ()),
    "a share of each part": ({"penalty": {"fraction": 0.5, "interval": 1}}, {"accumulation": 2}, ()),
    "finite difference": ({"penalty": {"name": "finite_difference", "fraction": 1, "interval": 1, "step": 0.5}}, {}, ()),
    "accumulation": ({"penalty": EVERYTHING, "accumulation": 2}, {"accumulation": 1}, ()),
    "a share of accumulated parts": ({"penalty": {"fraction": 0.5, "interval": 1}, "accumulation": 2}, {"accumulation": 4}, ()),
    "orthogonal gradients": ({"optimizer": {"warmup_kimg": 0, "g_orthogonal": True}}, {"accumulation": 2}, ()),
    "captioner": ({"terms": {"caption": CAPTIONER}}, {"accumulation": 2}, ()),
    "frozen parts": ({"penalty": EVERYTHING}, {}, ("G.text_head", "D.trunk.rgb16", "D.head.word_attention")),
}


def smooth_networks(*arguments: Any) -> Networks:
    """With an Adam that lets rounding be: the plain one makes a full step of a gradient that is nothing but rounding."""
    networks = build_networks(*arguments)
    for optimizer in (networks.g_optimizer, networks.d_optimizer):
        optimizer.param_groups[0]["eps"] = 0.1
    return networks


def arrays_of(networks: Networks) -> Arrays:
    named = {f"{name}/{key}": value for name in ("G", "D", "G_ema") for key, value in getattr(networks, name).state_dict().items()}
    return {name: value.detach().contiguous().numpy().copy() for name, value in named.items()}


def take_steps(values: Values, frozen: tuple[str, ...] = ()) -> tuple[Arrays, Arrays, dict[str, float]]:
    """Weights before and after three steps of this process's share, some negatives masked in its uneven halves, and the last metrics."""
    session_module.build_networks = smooth_networks
    session = prepare(TrainConfig.parse(values))
    networks = session.networks
    for name in frozen:
        network, _, part = name.partition(".")
        getattr(networks, network).get_submodule(part).requires_grad_(False)
    before = arrays_of(networks)
    count = session.config.batch
    mask = torch.tensor([[True], [False], [True], [False], [True], [True], [True], [True]])
    for nimg in range(0, 3 * count, count):
        batch = dataclasses.replace(session.sampler.batch(nimg, count, own_rows(count)), negative_mask=mask)
        assert len(batch.images) == len(range(count)[own_rows(count)])
        metrics = session.step(batch, session.cache.gather, nimg)
    return before, arrays_of(networks), {name: value.item() for name, value in metrics.items()}


def take_all_steps(cases: dict[str, tuple[Values, tuple[str, ...]]]) -> dict[str, Any]:
    return {name: take_steps(*case) for name, case in cases.items()}


@pytest.fixture(scope="module", autouse=True)
def _same_networks() -> Any:
    session_module.build_networks = smooth_networks
    yield
    session_module.build_networks = build_networks


@pytest.fixture(scope="module")
def values(small_config: Callable[..., Values]) -> Callable[..., Values]:
    def make(**changes: Any) -> Values:
        rates = {"optimizer": {"warmup_kimg": 0, "g_lr": 2e-3, "d_lr": 2e-3}}
        return small_config(**{"batch": 8, "precision": "float32", "augment": AUGMENT, "device": "cpu", **rates, **changes})

    return make


@pytest.fixture(scope="module")
def of_two(values: Callable[..., Values], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Run every case in both processes, in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_T2I_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return together(take_all_steps, {name: (values(**changes), frozen) for name, (changes, _, frozen) in CASES.items()})


def assert_same(ours: Arrays, theirs: Arrays, before: Arrays) -> None:
    """The same moves, to a thousandth of the largest in each tensor."""
    for name, start in before.items():
        moved = np.abs(theirs[name] - start).max()
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-3 * moved + 1e-7, err_msg=name)


@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_give_what_one_gives(of_two: list[dict[str, Any]], values: Callable[..., Values], name: str) -> None:
    changes, alone, frozen = CASES[name]
    before, after, metrics = take_steps(values(**{**changes, **alone}), frozen)
    (_, first, first_metrics), (_, second, second_metrics) = (results[name] for results in of_two)
    assert_same(first, after, before)
    for key in first:
        assert np.array_equal(first[key], second[key]), key  # or they would drift apart
    for key, value in metrics.items():
        assert (first_metrics[key] + second_metrics[key]) / 2 == pytest.approx(value, rel=1e-3, abs=1e-5), key
    assert first_metrics["Gradient/D"] == second_metrics["Gradient/D"]
    held = [key for key in before if key.startswith(tuple(part.replace(".", "/", 1) + "." for part in frozen))]
    assert bool(held) == bool(frozen)
    for key in held:
        assert np.array_equal(first[key], before[key]), key


def write_run(
    values: Values, outdir: Path, stop_at: int | None = None, break_at: int | None = None, die_at: int | None = None, once: bool = False
) -> Any:
    """Trains; rank 1 alone gets a signal, a network that is not finite (once, or at every rate), or killed, before the step after so many
    pictures.

    Returns the folder, the signal that ended the run, and what this process opened to write below `outdir`."""
    session_module.build_networks = smooth_networks
    written: set[str] = set()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            written.add(arguments[0])

    sys.addaudithook(note)
    run_step = Session.run_step

    def run_step_or_not(session: Session, nimg: int) -> dict[str, torch.Tensor]:
        if rank() == 1 and nimg == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # as torchrun does after a cluster manager
        if rank() == 1 and nimg == break_at and not (once and session.step.rate_scale < 1):
            next(session.networks.D.parameters()).data.fill_(torch.nan)
        if rank() == 1 and nimg == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return run_step(session, nimg)

    Session.run_step = run_step_or_not  # type: ignore[method-assign]
    folder, stopped_by = run_training(TrainConfig.parse(values), outdir, resume="auto", description="many")
    return folder, stopped_by, sorted(path for path in written if path.startswith(str(outdir)))


Start = Callable[..., tuple[RunFolder, int | None]]


def test_a_run_goes_on_with_another_number_of_processes(
    values: Callable[..., Values], start: Start, signal_after: Callable[..., None], tmp_path: Path
) -> None:
    """Two are stopped by a signal to one of them, one goes on and is stopped, two go on to the end."""
    rates = {"warmup_kimg": 0, "g_lr": 2e-4, "d_lr": 2e-4}  # higher ones make much of rounding in ten steps
    config, outdir = values(batch=4, penalty=EVERYTHING, optimizer=rates), tmp_path / "runs"
    (folder, first, _), (same, second, nothing) = together(write_run, config, outdir, 8)
    assert first == second == signal.SIGTERM
    assert folder.path == same.path
    assert nothing == []
    assert read_tensors(folder.state)[1]["nimg"] == 16  # the step before 12, and one for the word to arrive
    signal_after(24)
    changes = {key: value for key, value in config.items() if key != "data"}
    assert start(outdir=outdir, **changes) == (folder, signal.SIGTERM)
    (again, first, written), (_, second, nothing) = together(write_run, config, outdir)
    assert (again.path, first, second) == (folder.path, None, None)
    assert (list_runs(outdir), nothing) == ([folder], [])
    assert any("state.safetensors" in path for path in written)
    unbroken, _ = start(outdir=tmp_path / "unbroken", **changes)
    assert [path.name for path in folder.snapshots()][-1] == unbroken.snapshots()[-1].name
    assert {path.name for path in (folder.path / "grids").iterdir()} == {path.name for path in (unbroken.path / "grids").iterdir()}
    ours, theirs = read_tensors(folder.state)[0], read_tensors(unbroken.state)[0]
    for name, tensor in theirs.items():
        scale = tensor.abs().max().item()
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=5e-3 * scale + 1e-7, msg=lambda text, name=name: f"{name}: {text}")
    means = [run.stats.read_text(encoding="utf-8").splitlines() for run in (folder, unbroken)]
    last, expected = (yaml.safe_load(lines[-1]) for lines in means)
    assert last["nimg"] == expected["nimg"] == 40
    for name in ("Loss/G/loss", "Loss/D/loss", "Loss/D/mismatch", "Gradient/G", "Loss/scores/real", "Text/match_gap"):
        assert last[name] == pytest.approx(expected[name], rel=1e-2, abs=1e-4), name


def test_numbers_that_are_not_finite_stop_all(values: Callable[..., Values], tmp_path: Path) -> None:
    first, second = together(write_run, values(batch=4), tmp_path, None, 28)
    for error in (first, second):
        assert isinstance(error, GanT2IError)
        assert "Loss/D/loss" in str(error)
        assert "is not finite" in str(error)
    (folder,) = list_runs(tmp_path)
    assert read_tensors(folder.state)[1]["nimg"] == 20


def test_who_loses_another_says_so(values: Callable[..., Values], tmp_path: Path) -> None:
    first, second = together(write_run, values(batch=4), tmp_path, None, None, 28)
    assert second is None
    assert str(first).startswith("process 0 cannot reach the others of this run (")
    assert "the same command resumes" in str(first)
    (folder,) = list_runs(tmp_path)
    assert read_tensors(folder.state)[1]["nimg"] == 20


def test_a_batch_that_cannot_be_shared_is_refused(values: Callable[..., Values]) -> None:
    for error in together(take_steps, values(batch=6, accumulation=2)):
        assert isinstance(error, UsageError)
        assert str(error) == "batch 6 must be a multiple of 2 processes times accumulation 2"


def test_all_go_back_together(values: Callable[..., Values], tmp_path: Path) -> None:
    """One process's network breaks once: both return to the last state, with the same lower rates, and end as one."""
    (folder, first, _), (_, second, written) = together(write_run, values(batch=4), tmp_path, None, 28, None, True)
    assert (first, second, written) == (None, None, [])
    tensors, metadata = read_tensors(folder.state)
    assert (metadata["nimg"], metadata["rollbacks"]) == (40, 1)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    rates = [record["Progress/lr_g"] for record in folder.records() if "Progress/lr_g" in record]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == rates[0] / 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_torchrun_with_a_process_that_ends(values: Callable[..., Values], tmp_path: Path, number: signal.Signals) -> None:
    """SIGKILL to one process ends the run as it stands; SIGTERM to torchrun saves first. Both go on by the same command."""
    config, outdir = tmp_path / "many.yaml", tmp_path / "runs"
    report = {"stats_kimg": 0.04, "grid_kimg": 10, "snapshot_kimg": 0.04, "grid_prompts": 1, "grid_seeds": 1}
    config.write_text(yaml.safe_dump(values(kimg=1.6, report=report)), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gan_t2i", "train"]
    command = [*torchrun, "--config", str(config), "--outdir", str(outdir)]
    options: Values = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **options) as process:
        while process.poll() is None and not list(outdir.glob("*/snapshots/snapshot-*.safetensors")):
            time.sleep(0.05)
        if number == signal.SIGKILL:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
            assert len(children) == 2
            os.kill(int(children[1]), number)
        else:
            process.send_signal(number)
        output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    (folder,) = list_runs(outdir)
    nimg = read_tensors(folder.state)[1]["nimg"]
    assert 40 <= nimg < 1600
    assert folder.snapshots()[-1] == folder.snapshot(nimg)
    if number == signal.SIGKILL:
        assert "cannot reach the others of this run" in output
    else:
        assert f"stopped after {nimg:,} of 1,600 images" in output
    finished = subprocess.run(command, **options, check=False)
    assert finished.returncode == 0, finished.stdout
    assert f"going on with {folder.path} after {nimg:,} images" in finished.stdout
    assert finished.stdout.count("done: ") == 1
    assert read_tensors(folder.state)[1]["nimg"] == 1600
