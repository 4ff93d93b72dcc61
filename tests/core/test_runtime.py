import os

import pytest
import torch

from gan_t2i.core.errors import UsageError
from gan_t2i.core.runtime import (
    autocast,
    autocast_off,
    gpu_arithmetic_restored,
    has_fast_bf16,
    pick_device,
    seeded_rng,
    seeded_weights,
    set_gpu_arithmetic,
    torch_defaults,
)

CPU = torch.device("cpu")


def draw(*key):
    return torch.rand(4, generator=seeded_rng(*key))


def test_draws_depend_on_the_whole_key_and_nothing_else():
    torch.manual_seed(0)
    first = draw(0, 0, 16, "z")
    torch.manual_seed(1)
    assert torch.equal(draw(0, 0, 16, "z"), first)
    others = [draw(*key) for key in ((1, 0, 16, "z"), (0, 1, 16, "z"), (0, 0, 17, "z"), (0, 0, 16, "y"), (0, 0, 1, "6/z"), (-1, 0, 16, "z"))]
    assert len({tuple(values.tolist()) for values in [first, *others]}) == 7


def test_draws_are_the_same_on_every_machine():
    # A change here changes every picture that a seed has drawn.
    assert seeded_rng(0, "z").initial_seed() == 1980738991719951047


def test_a_device_that_is_not_here_is_refused_in_one_sentence():
    assert pick_device("cpu") == CPU
    assert pick_device().type in ("cpu", "cuda", "mps")
    for name in ("cuda:99", "tpu!", "xla"):
        with pytest.raises(UsageError) as error:
            pick_device(name)
        assert str(error.value).startswith(f"device {name!r} cannot be used here")
        assert "\n" not in str(error.value)


def test_a_gpu_computes_exactly_only_where_it_is_asked_to(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for asked in (True, False):
        set_gpu_arithmetic(fixed_order=asked, exact_convolutions=asked)
        assert torch.are_deterministic_algorithms_enabled() is asked
        assert torch.backends.cudnn.conv.fp32_precision == ("ieee" if asked else "tf32")
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # read once, and so left


def test_precision_is_what_was_asked_for_and_can_be_switched_off_inside():
    x = torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (x @ x).dtype == torch.bfloat16
        with autocast_off(CPU):
            assert (x @ x).dtype == torch.float32
    with autocast(CPU, "float32"):
        assert (x @ x).dtype == torch.float32
    with autocast(CPU, "auto"):
        assert (x @ x).dtype == (torch.bfloat16 if has_fast_bf16(CPU) else torch.float32)


def settings():
    """What a program sets in torch."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee"),
    )


def test_torch_is_as_it_starts_within_and_the_callers_afterwards():
    usual = (torch.float32, CPU, True, False, False, True)
    assert settings() == usual
    weight = torch.nn.Parameter(torch.full((2, 2), 1.0))
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            before = settings()
            assert all(value != other for value, other in zip(before, usual, strict=True))
            with torch_defaults(), torch_defaults():
                assert settings() == usual
                for value in (1.0, 3.0):  # a second step sees the first one's weights
                    with torch.no_grad():
                        weight.fill_(value)
                    with autocast(CPU, "bf16"):
                        assert (weight @ torch.ones(2, 1)).tolist() == [[2 * value]] * 2
            assert settings() == before
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
    assert torch.autocast_increment_nesting() == 1
    assert torch.autocast_decrement_nesting() == 0


def test_a_gpus_arithmetic_is_the_callers_afterwards(monkeypatch):
    def flags():
        deterministic = torch.utils.deterministic.fill_uninitialized_memory, torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.are_deterministic_algorithms_enabled(), *deterministic, torch.backends.cudnn.conv.fp32_precision

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    for mode in (False, True):
        torch.use_deterministic_algorithms(mode, warn_only=mode)
        before = flags()
        with gpu_arithmetic_restored():
            set_gpu_arithmetic(fixed_order=not mode, exact_convolutions=True)
            assert flags() != before
        assert flags() == before
    torch.use_deterministic_algorithms(False)


def test_new_weights_depend_on_the_seed_alone_and_no_generator_is_touched(monkeypatch):
    def draw_weights(seed):
        with seeded_weights(seed):
            return torch.nn.Linear(3, 3).weight

    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs are the caller's"))
    before = torch.get_rng_state()
    assert torch.equal(draw_weights(1), draw_weights(1))
    assert not torch.equal(draw_weights(1), draw_weights(2))
    assert torch.equal(torch.get_rng_state(), before)
