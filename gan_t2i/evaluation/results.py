"""Results of the measures of a trained model, and the files that they are written to."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from gan_t2i.core.files import output_file
from gan_t2i.core.images import save_picture
from gan_t2i.runs import RunFolder

Generate = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""A model to measure: prompts and seeds -> pictures, prompt by prompt, each with its seeds in order."""


@dataclass(frozen=True)
class Result(ABC):
    """Figures of one measure, with the settings that they were taken with."""

    suite: ClassVar[str]
    """Name of the measure and of its files."""
    defaults: ClassVar[Mapping[str, object]]
    """Attributes that are settings -> their default values."""

    @property
    def changed(self) -> dict[str, object]:
        """Settings that differ from their defaults. File names list them, so that a smaller evaluation never overwrites the full one."""
        return {name: getattr(self, name) for name, default in self.defaults.items() if getattr(self, name) != default}

    @abstractmethod
    def table(self) -> str:
        """The figures as lines for people."""

    @abstractmethod
    def scalars(self) -> dict[str, float]:
        """TensorBoard tag -> value."""

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {"suite": self.suite, **asdict(self)}

    def sheet(self) -> Image.Image | None:
        """Pictures to look at; None where there are none."""
        return None


def write(
    result: Result,
    run: RunFolder | None,
    metadata: Mapping[str, Any],
    json_file: Path | None = None,
    sheet_file: Path | None = None,
) -> list[Path]:
    """Write a result and its sheet to the given files, else into the run's evaluation/, and return the paths.

    `metadata` describes the model: it comes first in the JSON file, and its "nimg" is in the default file names. If its "own_data" is False,
    for figures of pictures that the model was not trained on, the start of its "data_fingerprint" is too. Without a run, only the given files
    are written. Raises `UsageError` where a file cannot be written.
    """
    if run is not None:
        parts = [result.suite, f"{metadata['nimg']:09d}", *(f"{name}{value}" for name, value in result.changed.items()), *_other_data(metadata)]
        path = run.path / "evaluation" / f"{'-'.join(parts)}.json"
        json_file, sheet_file = json_file or path, sheet_file or path.with_suffix(".png")
    written = []
    if json_file is not None:
        write_json(json_file, {**metadata, **result.to_json()})
        written.append(json_file)
    if sheet_file is not None and (picture := result.sheet()) is not None:
        save_picture(picture, sheet_file)
        written.append(sheet_file)
    return written


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write the values; raises `UsageError` where `path` cannot be written."""
    with output_file(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_scalars(result: Result, run: RunFolder, metadata: Mapping[str, Any]) -> None:
    """Add the figures to the run's TensorBoard at step "nimg" of `metadata`; those of other data than the run's have tags of their own."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.path)) as writer:
        for name, value in result.scalars().items():
            writer.add_scalar("-".join([name, *_other_data(metadata)]), value, metadata["nimg"])


def _other_data(metadata: Mapping[str, Any]) -> list[str]:
    """Return the part of a name that tells figures of other data than the run's from its own."""
    return [] if metadata.get("own_data", True) else [f"data{metadata['data_fingerprint'][:8]}"]
