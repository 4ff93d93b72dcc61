"""The library takes nothing from the caller's global state, and leaves it as it was."""

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gan_t2i
from gan_t2i import Text2Image
from gan_t2i.runs import RunFolder

STATES = ["float64", "bfloat16", "meta", "inference", "autocast"]


@contextlib.contextmanager
def caller(state: str) -> Iterator[None]:
    """A program that has changed one thing in torch."""
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(state, torch.float32)
    inside = {"meta": torch.device("meta"), "inference": torch.inference_mode(), "autocast": torch.autocast("cpu")}
    torch.set_default_dtype(dtype)
    try:
        with inside.get(state, contextlib.nullcontext()):  # type: ignore[attr-defined]
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def global_state() -> list[Any]:
    loggers = [logging.getLogger(name) for name in ("", "gan_t2i", "transformers", "sentence_transformers")]
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        list(warnings.filters),
        [(logger.level, logger.disabled, logger.propagate, list(logger.handlers)) for logger in loggers],
        dict(os.environ),
        os.getcwd(),
    ]


@pytest.mark.parametrize("state", STATES)
def test_pictures(state: str, trained: RunFolder) -> None:
    expected = Text2Image.load(trained.path).generate(["red", "a blue square"], seeds=[0, 1])
    outside = Text2Image.load(trained.path)
    with caller(state):
        before = global_state()
        model = Text2Image.load(trained.path)
        assert model.generate(["red", "a blue square"], seeds=[0, 1]) == expected
        assert outside.generate(["red", "a blue square"], seeds=[0, 1]) == expected
        pictures = model.stream("red", seeds=range(3))
        next(pictures)
        assert global_state() == before  # between two pictures too
    assert model.to("cpu").generate("red") == expected[:1]


@pytest.fixture(scope="module")
def run_bits(small_config: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The last snapshot of a short run in a program that has changed nothing."""
    return trained_bits(small_config, tmp_path_factory.mktemp("plain"))


def trained_bits(small_config: Callable[..., dict[str, Any]], outdir: Path) -> bytes:
    return RunFolder(gan_t2i.train(small_config(kimg=0.008), outdir=outdir).folder).snapshots()[-1].read_bytes()


@pytest.mark.parametrize("state", ["float64", "meta", "inference", "autocast"])
def test_training(state: str, run_bits: bytes, small_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with caller(state):
        before = global_state()
        assert trained_bits(small_config, tmp_path) == run_bits
        assert global_state() == before
