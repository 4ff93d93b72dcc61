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
from gan_t2i.distributed import own_rows, rank
from gan_t2i.errors import GanT2IError, UsageError
from gan_t2i.runs import RunFolder, list_runs
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.session import Session, prepare
from gan_t2i.training.start import run_training
from gan_t2i.training.step import Networks, build_networks

Values = dict[str, Any]
Arrays = dict[str, np.ndarray]

AUGMENT = {"translation": 0.1, "cutout": 0.2, "brightness": 0.2, "saturation": 0.5}
EVERYTHING = {"fraction": 1, "interval": 2}
# name -> (changes of the config for two processes, other changes for one process, parts of the networks that are frozen)
CASES: dict[str, tuple[Values, Values, tuple[str, ...]]] = {
    "plain": ({"penalty": {"interval": 100}}, {}, ()),
    "lazy penalty": ({"penalty": EVERYTHING}, {}, ()),
    "a share of each part": ({"penalty": {"fraction": 0.5, "interval": 1}}, {"accumulation": 2}, ()),
    "finite difference": ({"penalty": {"name": "finite_difference", "fraction": 1, "interval": 1}}, {}, ()),
    "accumulation": ({"penalty": EVERYTHING, "accumulation": 2}, {"accumulation": 1}, ()),
    "a share of accumulated parts": ({"penalty": {"fraction": 0.5, "interval": 1}, "accumulation": 2}, {"accumulation": 4}, ()),
    "frozen parts": ({"penalty": EVERYTHING}, {}, ("G.text_head", "D.trunk.0", "D.head.word_attention")),
}


def smooth_networks(config: TrainConfig, interface: dict[str, int], device: torch.device) -> Networks:
    """With an Adam that lets rounding be: the plain one makes a full step of a gradient that is nothing but rounding."""
    networks = build_networks(config, interface, device)
    for optimizer in (networks.g_optimizer, networks.d_optimizer):
        optimizer.param_groups[0]["eps"] = 0.1
    return networks


def arrays_of(networks: Networks) -> Arrays:
    named = {f"{name}/{key}": value for name in ("G", "D", "G_ema") for key, value in getattr(networks, name).state_dict().items()}
    return {name: value.detach().contiguous().numpy().copy() for name, value in named.items()}


def take_steps(values: Values, frozen: tuple[str, ...] = ()) -> tuple[Arrays, Arrays, dict[str, float]]:
    """Weights before and after three steps of this process's share, some negatives masked in its uneven halves, and the last metrics."""
    session_module.build_networks = smooth_networks
    session = prepare(TrainConfig.parse(values), lambda message: None)
    networks = session.networks
    for name in frozen:
        network, _, part = name.partition(".")
        getattr(networks, network).get_submodule(part).requires_grad_(False)
    before = arrays_of(networks)
    count = session.config.batch
    wrong = torch.tensor([[True], [False], [True], [False], [True], [True], [True], [True]])
    for nimg in range(0, 3 * count, count):
        batch = dataclasses.replace(session.sampler.batch(nimg, count, own_rows(count)), wrong=wrong)
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
        rates = {"optimizer": {"warmup_kimg": 0, "g_lr": 0.03, "d_lr": 0.03}}
        return small_config(**{"batch": 8, "precision": "float32", "augment": AUGMENT, "device": "cpu", **rates, **changes})

    return make


@pytest.fixture(scope="module")
def of_two(values: Callable[..., Values], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes find in every case, taken in one go."""
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
    for key, start in before.items():
        moved = not np.array_equal(after[key], start)
        assert moved == (key not in held) or key.startswith("G_ema/"), key
