"""Where the benchmarks' results go: one JSON file for each, named so that a smaller run never takes the place of the whole one."""

import json
from collections.abc import Mapping
from pathlib import Path

from gan_t2i.core.errors import UsageError
from gan_t2i.core.files import atomic_file
from gan_t2i.runs import RunFolder


def result_path(run: RunFolder, suite: str, nimg: int, changed: Mapping[str, int | str]) -> Path:
    """The JSON file in the run's evaluation/ for the model after `nimg` pictures; `changed`: settings that are not the suite's defaults."""
    parts = [suite, f"{nimg:09d}", *(f"{name}{value}" for name, value in changed.items())]
    return run.path / "evaluation" / f"{'-'.join(parts)}.json"


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write the values; raises `UsageError` where `path` cannot be written."""
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def write_scalars(run: RunFolder, scalars: Mapping[str, float], nimg: int) -> None:
    """Show the values in the run's TensorBoard at step `nimg`."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.path)) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value, nimg)
