"""Train from Python: `train`, and the `Run` that it returns. The command ``gan-t2i train`` is the same code with options for arguments."""

from __future__ import annotations  # for short types in help()

import json
import logging
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gan_t2i.core import recipes
from gan_t2i.core.arguments import as_integer, as_number, as_path, as_positive
from gan_t2i.core.config import read_yaml
from gan_t2i.core.distributed import from_first, is_first, process_group
from gan_t2i.core.errors import UsageError
from gan_t2i.core.runtime import gpu_arithmetic_restored, torch_defaults
from gan_t2i.doctor.plan import Request, make_plan
from gan_t2i.runs import RunFolder
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.run import RECOMMENDED, REQUEST, find_requested, is_finished, named_run, run_training

log = logging.getLogger(__name__)


class Run:
    """A training run: its folder with snapshots, grids, metrics and the state to resume from.

    >>> run = gan_t2i.Run("runs/00000-my-pictures")
    >>> run.model().generate("a blue teapot", seeds=range(4))

    Args:
        folder: the run folder, kept as the attribute ``folder``; raises `UsageError` where it does not exist.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = as_path(folder, "folder")
        if not self.folder.is_dir():
            raise UsageError(f"there is no run folder {self.folder}")

    def __repr__(self) -> str:
        nimg = next((record["nimg"] for record in reversed(self.metrics) if "Progress/kimg" in record), 0)
        return f"Run({str(self.folder)!r}, {nimg:,} images, {'finished' if self.finished else 'unfinished'})"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Metrics of the run, one dict per tick, oldest first: ``nimg`` (images shown so far), ``Loss/G/loss``, ``Text/match_gap`` and more.

        They are the lines of stats.jsonl: ``[(m["nimg"], m["Loss/D/loss"]) for m in run.metrics if "Loss/D/loss" in m]`` is a curve.
        Evaluations and the decoder's fine-tuning, whose images count on, have lines of their own.
        """
        return RunFolder(self.folder).records()

    @property
    def finished(self) -> bool:
        """True if the run has reached the length in its config."""
        return is_finished(RunFolder(self.folder))

    def model(self, *, device: str = "auto") -> Text2Image:
        """Load the newest snapshot; raises `GanT2IError` where there is none yet."""
        return Text2Image.load(self.folder, device=device)


@torch_defaults()
@gpu_arithmetic_restored()
def train(
    config_or_preset: str | Path | Mapping[str, Any] | TrainConfig | None = None,
    *,
    data: str | Path | None = None,
    minutes: float | None = None,
    kimg: float | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    outdir: str | Path = "runs",
    resume: str | Path | Run = "auto",
) -> Run:
    """Train a model on captioned pictures, and return the run.

    >>> import gan_t2i
    >>> run = gan_t2i.train(data="my_pictures", minutes=30)
    >>> run.model().generate("a blue teapot")[0].save("teapot.png")

    Ctrl-C saves the run, and the same call continues it. Messages go to the logger ``gan_t2i``: ``logging.basicConfig(level="INFO")`` shows
    them.

    Args:
        config_or_preset: the name of a shipped recipe such as "emoji64", a YAML file, or config values as a mapping. None takes a config
            that suits the data, this machine and the minutes; it is kept in the run folder as recommended.yaml, with its reasons.
        data: a folder of captioned pictures, a file, ``hf:owner/name``, or a built-in set; in place of the config's.
        minutes: time that the run is to take, at the speed measured on this machine; 60 without a config, else the config's own length.
        kimg: length of the run in thousands of images shown, in place of minutes.
        seed: seed of every random number.
        settings: changes of single settings by dotted key, such as ``{"optimizer.g_lr": 1e-4, "data.caption_column": "title"}``.
        outdir: folder that the run's own folder is made in.
        resume: "auto" continues the newest unfinished run of the same call; "never" begins a new one; "latest", a run folder or a `Run`
            continues that, without config and data by its own config; a larger kimg lengthens it.

    Returns:
        The finished run.

    Raises:
        UsageError: an argument or a setting is wrong; the message says which, and what is allowed.
        GanT2IError: the data, a file or the machine does not allow the training, or it diverged.
        KeyboardInterrupt: the run was interrupted, after it has been saved.
    """
    if not isinstance(settings, Mapping | None):
        raise UsageError(f"settings must map dotted keys to values, not {settings!r}")
    base, name = _base(config_or_preset)
    try:
        changes = tuple(f"{key}={json.dumps(value, default=str)}" for key, value in (settings or {}).items())
    except (TypeError, ValueError) as error:
        raise UsageError(f"settings cannot be written as JSON: {error}") from error
    minutes = as_positive(minutes, "minutes") if minutes is not None else None
    kimg = as_number(kimg, "kimg") if kimg is not None else None
    seed = as_integer(seed, "seed") if seed is not None else None
    given = {"data": {"source": str(data)} if data is not None else {}, "kimg": kimg, "seed": seed}
    request = Request(base, changes, {key: value for key, value in given.items() if value not in (None, {})}, minutes)
    where = str(resume.folder if isinstance(resume, Run) else resume)
    folder, stopped_by = begin(request, as_path(outdir, "outdir"), resume=where, description=name)
    if stopped_by is not None:
        signal.raise_signal(stopped_by)  # saved; now it does what it does everywhere
    return Run(folder.path)


def begin(
    request: Request,
    outdir: Path,
    *,
    resume: str = "auto",
    description: str | None = None,
    changed_data: bool = False,
    keep_threads: bool = False,
) -> tuple[RunFolder, int | None]:
    """Train what is requested; arguments and result as for `training.run.run_training`. The description is the data's name by default."""
    request = with_config_of_run(request, outdir, resume)
    config = None if request.is_measured else make_plan(request).config
    with process_group(request.device):
        run: str | RunFolder = resume
        files: dict[str, str] = {}
        if config is None:
            found = from_first(find_requested(request.to_json(), outdir, resume) if is_first() else None)
            if found is not None:
                run, config = found
            else:
                plan = make_plan(request)
                for line in plan.lines:
                    log.info(line)
                run, config, files = "never", plan.config, {REQUEST: json.dumps(request.to_json())}
                if plan.recommended is not None:
                    files[RECOMMENDED] = plan.recommended
        name = description or Path(config.data.source).name
        options = {"changed_data": changed_data, "keep_threads": keep_threads}
        return run_training(config, outdir, resume=run, description=name, files=files, **options)


def with_config_of_run(request: Request, outdir: Path, resume: str) -> Request:
    """Return a request that names nothing but a run to resume with that run's config, others as they are."""
    data = request.apply({}).get("data")
    if request.base is not None or request.minutes is not None or (isinstance(data, Mapping) and "source" in data):
        return request
    run = named_run(outdir, resume)
    return request if run is None else replace(request, base=read_yaml(run.config))


def _base(config: str | Path | Mapping[str, Any] | TrainConfig | None) -> tuple[Mapping[str, Any] | None, str | None]:
    """Return config values and their name, None for those that are to be recommended."""
    if config is None or isinstance(config, Mapping):
        return config, None
    if isinstance(config, TrainConfig):
        return config.model_dump(mode="json"), None
    path = recipes.path_of(str(config))
    return read_yaml(path), path.stem
