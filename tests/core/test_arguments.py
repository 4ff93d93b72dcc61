"""Arguments are taken for what they are, or refused in a sentence."""

import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from gan_t2i.core.arguments import as_integer, as_number, as_prompts, as_seeds
from gan_t2i.core.errors import UsageError


@pytest.mark.parametrize("seed", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)], ids=repr)
def test_integers_of_every_library_are_the_same_seed(seed: Any) -> None:
    assert as_seeds(seed) == [3]
    assert type(as_integer(seed, "seed")) is int
    assert as_seeds([seed, 1]) == [3, 1]


@pytest.mark.parametrize(
    "seeds", [[4, 1], (4, 1), np.array([4, 1]), torch.tensor([4, 1]), {4: "", 1: ""}, iter([4, 1])], ids=lambda seeds: type(seeds).__name__
)
def test_several_seeds(seeds: Any) -> None:
    assert [(seed, type(seed)) for seed in as_seeds(seeds)] == [(4, int), (1, int)]


def test_seeds_stay_as_few_or_many_as_they_are() -> None:
    assert as_seeds(torch.tensor([7])) == as_seeds(np.array([7])) == [7]
    assert as_seeds([]) == []
    assert as_seeds([1, 1, -2]) == [1, 1, -2]
    assert as_seeds(range(2**50)) == range(2**50)


WRONG = [None, True, 1.0, "3", "0-3", b"3", np.True_, np.float32(1), torch.tensor(True), torch.tensor(1.0), math.nan, 1j, Fraction(1)]


@pytest.mark.parametrize("seed", WRONG, ids=repr)
def test_what_is_not_an_integer_is_no_seed(seed: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(f"seed {seed!r} is not an integer")):
        as_integer(seed, "seed")
    for seeds in (seed, [0, seed]):
        with pytest.raises(UsageError, match=r"^seed.*integer") as error:
            as_seeds(seeds)
        assert repr(seed) in str(error.value)


@pytest.mark.parametrize("seeds", [np.array([0.5, 1]), torch.ones(2), torch.tensor([True]), [[1, 2]], np.array([[1, 2]])], ids=repr)
def test_several_that_are_no_seeds(seeds: Any) -> None:
    with pytest.raises(UsageError, match="is not an integer"):
        as_seeds(seeds)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5), Fraction(1, 2)], ids=repr)
def test_numbers_of_every_library(value: Any) -> None:
    assert as_number(value, "psi") == 0.5
    assert type(as_number(value, "psi")) is float
    assert as_number(1, "psi") == 1.0


NO_NUMBERS = [None, True, "0.5", b"1", math.nan, -math.inf, np.float32("nan"), torch.tensor(math.nan), torch.ones(2), 1j, 10**400]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_not_a_finite_number(value: Any) -> None:
    with pytest.raises(UsageError, match=r"psi = .* is not a finite number"):
        as_number(value, "psi")


def test_prompts() -> None:
    assert as_prompts("red") == as_prompts(["red"]) == as_prompts(np.array(["red"])) == ["red"]
    assert as_prompts(f"{number}" for number in range(3)) == ["0", "1", "2"]
    assert as_prompts([]) == []
    for prompts, message in (
        (None, "prompts must be one text or several, not None"),
        (b"red", "prompts must be one text or several, not b'red'"),
        (["red", math.nan], "prompt 2 is nan: a prompt is text"),
        (["red", " "], "prompt 2 is empty"),
        (["\udcff"], "prompt 1 is not UTF-8 text"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            as_prompts(prompts)  # type: ignore[arg-type]
