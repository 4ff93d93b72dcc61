"""Captured steps, with a backend that replays the Python function; test_gpu.py has the real one."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from replayed import Replayed
from torch import Tensor

from gan_t2i.core.graphs import Replay
from gan_t2i.losses.inputs import StepNoise
from gan_t2i.runs import RunFolder
from gan_t2i.training.capture import CapturedStep, InputBuffers, differing, map_tensors, tensors_in
from gan_t2i.training.networks import Networks
from gan_t2i.training.resident import make_resident
from gan_t2i.training.session import Session
from gan_t2i.training.step import TrainStep

MakeSession = Callable[..., Session]
FINITE = {"name": "finite_difference", "interval": 2}


def moving(networks: Networks) -> list[Tensor]:
    """Copy all that a step moves."""
    found = [*networks.G.state_dict().values(), *networks.D.state_dict().values(), *networks.G_ema.state_dict().values()]
    for optimizer in (networks.g_optimizer, networks.d_optimizer):
        found += [tensor for moments in optimizer.state.values() for tensor in moments.values()]
    return [tensor.clone() for tensor in found]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.mark.parametrize("changes", [{}, {"accumulation": 2}, {"penalty": FINITE}], ids=["plain", "accumulation", "finite difference"])
def test_replayed_steps_end_with_the_bits_of_eager_ones(make_session: MakeSession, changes: dict[str, Any]) -> None:
    """So the warm-up, the comparison and the capture of each kind of step leave no trace."""
    ends, seen, backend = [], [], Replayed()
    for paused in (False, True):
        session = make_session(**{"penalty": {"interval": 2}, **changes}, optimizer={"warmup_kimg": 0.01})
        session.step.capture_with(backend)
        assert session.step.captured is not None
        session.step.captured.paused = paused
        seen.append([{name: value.item() for name, value in session.run_step(nimg).items()} for nimg in range(0, 16, 4)])
        ends.append(moving(session.networks))
    assert seen[0] == seen[1]
    assert same(*ends)
    assert backend.captures == 3  # gradients with the penalty and without it, and the update
    assert backend.replays == 2 * 2 + 4 * 2  # two comparisons, four steps
    plain = make_session(**{"penalty": {"interval": 2}, **changes}, optimizer={"warmup_kimg": 0.01})
    for nimg, captured in zip(range(0, 16, 4), seen[0], strict=True):
        metrics = plain.run_step(nimg)  # without padded captions, so to rounding
        assert {name: value.item() for name, value in metrics.items()} == pytest.approx(captured, rel=0.05, abs=0.05)


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        (
            Replayed(broken="operation not permitted when stream is capturing\nmore"),
            "captured: operation not permitted when stream is capturing",
        ),
        (Replayed(wrong=1e-6), "captured: a replay gave other numbers than the step itself (Loss/G/distance, Loss/D/loss, "),
    ],
    ids=["refused", "wrong"],
)
def test_what_cannot_be_captured_runs_eagerly_and_says_so_once(make_session: MakeSession, said: list[str], backend: Replayed, why: str) -> None:
    session, other = make_session(), make_session()
    other.step.capture_with(Replayed())
    assert other.step.captured is not None
    other.step.captured.paused = True
    session.step.capture_with(backend)
    said.clear()
    for each in (session, other):
        each.run_step(4)
    assert same(moving(session.networks), moving(other.networks))  # the attempt moved nothing
    session.run_step(8)
    (sentence,) = said
    assert sentence.startswith("training steps run one operation at a time, as they cannot be captured: ")
    assert why in sentence
    assert session.step.captured is None


def test_a_rollback_captures_anew(start: Callable[..., tuple[RunFolder, int | None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's moments lie elsewhere after a state was loaded; a graph of before would move the old ones."""
    backend, run_step, found = Replayed(), Session.run_step, []

    def run(session: Session, at: int) -> dict[str, Tensor]:
        if session.step.captured is None:
            session.step.capture_with(backend)
        if at == 12 and session.step.rate_scale == 1:
            next(session.networks.G.parameters()).data.fill_(torch.nan)
        metrics = run_step(session, at)
        found.append((at, backend.captures))
        return metrics

    monkeypatch.setattr(Session, "run_step", run)
    start(kimg=0.02, report={"stats_kimg": 0.004, "grid_kimg": 1, "snapshot_kimg": 0.008, "grid_prompts": 1, "grid_seeds": 1})
    assert found == [(0, 2), (4, 3), (8, 3), (12, 3), (8, 5), (12, 5), (16, 6)]


def test_a_session_is_freed_with_its_graphs_at_once(make_session: MakeSession) -> None:
    """Else the memory of a GPU would fill up with those that were only measured: Python looks for cycles when it likes."""

    class Recorded(Replayed):
        def capture(self, function: Replay) -> Replay:
            results = function()  # a graph does not keep its function
            return lambda: results

    session = make_session(penalty={"interval": 2})
    session.step.capture_with(Recorded())
    gc.collect()
    gc.disable()
    try:
        session.run_step(0)
        step = weakref.ref(session.step)
        del session
        assert step() is None
    finally:
        gc.enable()


def test_inputs_of_other_shapes_run_eagerly(make_session: MakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the captions of a stream may, where unusable pictures were replaced."""
    backend, session = Replayed(), make_session()
    session.step.capture_with(backend)
    session.run_step(4)
    replays, fit = backend.replays, InputBuffers.fit
    monkeypatch.setattr(InputBuffers, "fit", lambda self, parts: False)
    metrics = session.run_step(8)
    assert backend.replays == replays
    assert metrics["Gradient/G"] > 0
    monkeypatch.setattr(InputBuffers, "fit", fit)
    session.run_step(8)
    assert backend.replays == replays + 2


def test_buffers_hold_every_type_and_tell_shapes_apart() -> None:
    noise = StepNoise(torch.rand(2, 1, 3), torch.rand(2, 6, dtype=torch.float64), torch.tensor(3), torch.tensor([[True], [False]]))
    buffers = InputBuffers([noise], torch.device("cpu"))  # type: ignore[list-item]
    buffers.fill([noise])  # type: ignore[list-item]
    assert all(map(torch.equal, tensors_in(buffers.inputs), tensors_in([noise])))
    assert all(not tensor.storage_offset() * tensor.itemsize % 256 for tensor in tensors_in(buffers.inputs))
    assert buffers.fit([noise])  # type: ignore[list-item]
    assert not buffers.fit(map_tensors(lambda tensor: tensor[None], [noise]))
    assert not buffers.fit(map_tensors(Tensor.half, [noise]))


def test_what_differs() -> None:
    ours = {"Loss/G/loss": torch.tensor(1.0), "Gradient/D": torch.tensor(5.0), "Loss/signs/real": torch.tensor(1.0)}
    theirs = {"Loss/G/loss": torch.tensor(1.001), "Gradient/D": torch.tensor(5.5), "Loss/signs/real": torch.tensor(-1.0)}
    assert differing(ours, ours, exact=True) == []
    assert differing(ours, theirs, exact=True) == ["Loss/G/loss", "Gradient/D"]
    assert differing(ours, theirs, exact=False) == ["Gradient/D"]


@pytest.mark.parametrize("latents", [False, True])
def test_a_set_on_the_device_gives_the_same_step(make_session: MakeSession, many_pictures: Path, latents: bool) -> None:
    changes: dict[str, Any] = {"data": {"source": str(many_pictures)}, "precision": "float32", "penalty": {"interval": 2}}
    if latents:
        changes["autoencoder"] = {"name": "conv", "params": {"factor": 2, "latent_channels": 6, "width": 16, "kimg": 0.08, "batch": 8}}
    found = []
    for most in (0, 2**30):
        session = make_session(**changes)
        assert isinstance(session.step, TrainStep)
        session.step.resident = make_resident(session.sampler, session.cache, session.device, most)  # type: ignore[arg-type]
        found.append([session.run_step(nimg) for nimg in (0, 4)])
    assert session.sampler.batch(0, 4).images.dtype == torch.int64
    assert session.step.resident.text is not None
    for eager, resident in zip(*found, strict=True):
        torch.testing.assert_close(eager, resident, rtol=1e-3, atol=1e-4)


def test_a_captured_step_is_off_while_it_is_counted(make_session: MakeSession) -> None:
    session, backend = make_session(), Replayed()
    session.step.capture_with(backend)
    with session.step.eager():
        session.run_step(0)
    assert backend.captures == 0
    assert isinstance(session.step.captured, CapturedStep)
    session.run_step(4)
    assert backend.captures == 2
