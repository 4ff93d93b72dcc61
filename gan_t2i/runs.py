"""Run folders: ``runs/00003-<name>/`` with config.yaml, stats.jsonl, TensorBoard events, grids/, snapshots/ and state.safetensors."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gan_t2i.core.errors import UsageError
from gan_t2i.core.files import existing_part, slug

RUNS = Path("runs")
"""Default folder of runs, for training and for `resolve_snapshot`."""

PRETRAINED = Path(__file__).parent / "pretrained"
"""Folder of the models that come with the package, each a snapshot with the name of its recipe."""
DEFAULT_MODEL = "icons64"

REPOSITORY = ("README.md", "config.json", "model.safetensors")
"""Files of a repository folder, which `gan-t2i export --to hub` writes: model card, metadata and snapshot."""


@dataclass(frozen=True)
class RunFolder:
    """Files of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def stats(self) -> Path:
        return self.path / "stats.jsonl"

    @property
    def state(self) -> Path:
        return self.path / "state.safetensors"

    @property
    def last_healthy(self) -> Path:
        """Path of the last state before the monitor suspected a failure; the file exists while it does."""
        return self.path / "good.safetensors"

    def grid(self, nimg: int) -> Path:
        return self.path / "grids" / f"grid-{nimg:09d}.png"

    def snapshot(self, nimg: int) -> Path:
        return self.path / "snapshots" / f"snapshot-{nimg:09d}.safetensors"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for training; raises `UsageError` if another process trains in it. The lock ends with the process at the latest."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"another process is training in {self.path}; for a second such run: --resume never") from error
            yield
        finally:
            os.close(descriptor)

    def snapshots(self) -> list[Path]:
        """Return the paths of the snapshots, oldest first."""
        return sorted((self.path / "snapshots").glob("snapshot-*.safetensors"))

    def records(self) -> list[dict[str, Any]]:
        """Return the records of stats.jsonl; a line that a crash left incomplete is skipped."""
        if not self.stats.is_file():
            return []
        records = []
        for line in self.stats.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("nimg"), int):
                    records.append(record)
        return records

    def thin_out(self, keep: int, metric: str, nimg: int) -> None:
        """Delete snapshots up to `nimg` until `keep` >= 2 are left: the one with the highest `metric` in its record, and the newest ones."""
        snapshots = [path for path in self.snapshots() if path.name <= self.snapshot(nimg).name]
        values = {self.snapshot(record["nimg"]): record[metric] for record in self.records() if isinstance(record.get(metric), int | float)}
        ranked = [path for path in snapshots if path in values]
        # among equals the newest, which was trained longest
        best = max(ranked, key=lambda path: (values[path], path.name), default=snapshots[-1])
        newest = [path for path in reversed(snapshots) if path != best][: keep - 1]
        for path in set(snapshots) - {best, *newest}:
            path.unlink()


def list_runs(outdir: Path) -> list[RunFolder]:
    """Return the run folders in `outdir`, by number."""
    if not outdir.is_dir():
        return []
    numbered = [(int(match[1]), path) for path in outdir.iterdir() if path.is_dir() and (match := re.match(r"(\d{5})-", path.name))]
    return [RunFolder(path) for _, path in sorted(numbered)]


def check_outdir(outdir: Path) -> None:
    """Raise `UsageError` where no run folder can be made in `outdir`, before hours of packing."""
    place = existing_part(outdir)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "is not writable" if place.is_dir() else "is a file"
        raise UsageError(f"no run folder can be made in {outdir}, as {place} {why}: give --outdir another folder")


def new_run(outdir: Path, description: str) -> RunFolder:
    """Create the next numbered folder in `outdir`; raises `UsageError` if that fails."""
    runs = list_runs(outdir)
    number = int(runs[-1].path.name[:5]) + 1 if runs else 0
    folder = RunFolder(outdir / f"{number:05d}-{slug(description)}")
    try:
        folder.path.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"cannot make run folder {folder.path}: {error.strerror}") from error
    return folder


def run_of(snapshot: Path) -> RunFolder | None:
    """Return the run whose snapshots/ folder holds `snapshot`, or None."""
    run = RunFolder(snapshot.absolute().parent.parent)
    return run if run.config.is_file() and snapshot.absolute().parent.name == "snapshots" else None


def model_name(snapshot: Path) -> str:
    """Return the name of a model for other programs: that of its run, or of its file."""
    run = run_of(snapshot)
    return slug(run.path.name if run else snapshot.stem)


def pretrained_model(name: str) -> Path:
    """Return the snapshot of a model that comes with the package, or raise `UsageError`."""
    models = {path.stem: path for path in sorted(PRETRAINED.glob("*.safetensors"))}
    if name not in models:
        raise UsageError(f"no model {name!r} comes with gan_t2i: there are {' and '.join(models)}")
    return models[name]


def resolve_snapshot(name: str, outdir: Path = RUNS) -> Path:
    """Return the snapshot file that `name` means, or raise `UsageError`.

    `name` is a snapshot, a run folder (its newest snapshot), a repository folder, ``latest`` (that of the newest run in `outdir` that has
    one), ``pretrained:NAME`` (a model of the package; ``pretrained`` is its default), or ``auto`` (latest, or pretrained if there is none).
    """
    kind, _, model = name.partition(":")
    if kind == "pretrained":
        return pretrained_model(model or DEFAULT_MODEL)
    if name in ("auto", "latest"):
        for run in reversed(list_runs(outdir)):
            if snapshots := run.snapshots():
                return snapshots[-1]
        if name == "auto":
            return pretrained_model(DEFAULT_MODEL)
        raise UsageError(f"there is no run with a snapshot in {outdir}/: train one first, e.g. gan-t2i train --preset quickstart")
    path = Path(name)
    if path.is_file():
        return path
    if not name or not path.is_dir():
        raise UsageError(f"no such run or snapshot: {name or repr(name)}; name a run folder, a snapshot file, latest or pretrained")
    if any((path / file).exists() for file in REPOSITORY[1:]):
        return _repository_snapshot(path)
    snapshots = RunFolder(path).snapshots()
    if not snapshots and not RunFolder(path).config.is_file():
        raise UsageError(f"{name} is no run folder: it has no snapshots and no config.yaml")
    if not snapshots:
        raise UsageError(f"run {name} has no snapshot yet; the first is written after report.snapshot_kimg, or when training is stopped")
    return snapshots[-1]


def _repository_snapshot(folder: Path) -> Path:
    """Return the snapshot in a repository folder, or raise `UsageError` where a file is missing or foreign; hidden ones may lie there."""
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if faults := sorted(found ^ set(REPOSITORY)):
        fault = f"holds {faults[0]}, which is no part of a model" if faults[0] in found else f"lacks {faults[0]}"
        raise UsageError(f"the repository folder {folder} {fault}: it has {', '.join(REPOSITORY)} and no other files")
    return folder / REPOSITORY[-1]
