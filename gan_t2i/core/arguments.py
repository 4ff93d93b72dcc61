"""Checks of arguments from Python: prompts, seeds and numbers are taken for what they are, or refused in a sentence."""

import math
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from gan_t2i.core.errors import UsageError

Seeds = SupportsIndex | Iterable[SupportsIndex]
"""One or several integers: Python's, numpy's or torch's."""


def as_prompts(prompts: str | Iterable[str]) -> list[str]:
    """Return the prompts as a list; raises `UsageError` for one that is not text or that is empty."""
    texts = [prompts] if isinstance(prompts, str) else _several(prompts, "prompts must be one text or several")
    for number, prompt in enumerate(texts, 1):
        if not isinstance(prompt, str):
            raise UsageError(f"prompt {number} is {prompt!r}: a prompt is text")
        if not prompt.strip():
            raise UsageError(f"prompt {number} is empty: say what to draw")
        if prompt.encode(errors="ignore").decode() != prompt:  # lone surrogates: bytes from a shell that are not text
            raise UsageError(f"prompt {number} is not UTF-8 text: {prompt!r}")
    return texts


def as_integer(value: Any, name: str) -> int:
    """Return an integer of any library as Python's; raises `UsageError` with the argument's `name` for everything else, floats and truth
    values included."""
    try:
        if _is_bool(value):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UsageError(f"{name} {value!r} is not an integer") from None


def as_seeds(seeds: Seeds) -> Sequence[int]:
    """Return one or several seeds as integers, a range as it is; raises `UsageError` for anything else."""
    if isinstance(seeds, range):
        return seeds
    if isinstance(seeds, SupportsIndex) and getattr(seeds, "ndim", 0) == 0:
        return [as_integer(seeds, "seed")]
    return [as_integer(seed, "seed") for seed in _several(seeds, "seeds must be one integer or several, such as range(4)")]


def as_number(value: SupportsFloat, name: str) -> float:
    """Return a finite number of any library as a float; raises `UsageError` with the argument's `name` for everything else."""
    try:
        if isinstance(value, str | bytes) or _is_bool(value) or not math.isfinite(number := float(value)):
            raise TypeError
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
        raise UsageError(f"{name} = {value!r} is not a finite number") from None
    return number


def as_positive(value: SupportsFloat, name: str) -> float:
    """Return a number as `as_number` does; raises `UsageError` where it is not above 0."""
    if (number := as_number(value, name)) <= 0:
        raise UsageError(f"{name} must be above 0, not {number:g}")
    return number


def as_path(value: str | os.PathLike[str], name: str) -> Path:
    """Return a path; raises `UsageError` with the argument's `name` for anything else."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{name} {value!r} is not a path")
    return Path(value)


def _is_bool(value: object) -> bool:
    """Return True for truth values, which count as integers: torch's as well as Python's."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def _several(values: Any, rule: str) -> list[Any]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise UsageError(f"{rule}, not {values!r}")
    return list(values)
