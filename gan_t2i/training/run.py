"""Start a run from its config: in a new folder, or in the folder of the unfinished run that the same command began."""

import contextlib
import json
import logging
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from gan_t2i.core.config import flatten, read_yaml, with_options, with_overrides
from gan_t2i.core.distributed import from_first, is_first, rank
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.files import atomic_file, remove_temporary
from gan_t2i.core.log import muted
from gan_t2i.data.batches import open_batches
from gan_t2i.runs import RunFolder, check_outdir, list_runs, new_run
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.loop import train
from gan_t2i.training.session import Session, prepare
from gan_t2i.training.state import DATA_SET, Progress, load_state, read_fingerprints, read_progress, read_threads
from gan_t2i.training.warm_start import init_source, warm_start

log = logging.getLogger(__name__)

REQUEST = "request.json"
"""File in a run folder with the request that its config was made for, where measurements on this machine decided on the config."""
FREE = ("kimg", "report", "evaluate", "device")
"""Config keys that a run which is resumed by its name may change."""
DATA_PLACES = ("source", "image_root")
"""Settings of the data that are places alone: the fingerprint tells whether the data there are the same."""
RECOMMENDED = "recommended.yaml"
"""File in a run folder with the config as it was recommended, with the reasons."""


def find_run(config: TrainConfig, outdir: Path, resume: str) -> RunFolder | None:
    """Return the run to resume, None for a new one.

    `resume`: ``auto`` takes the newest run in `outdir` with this config, if it is unfinished; ``never`` takes none; a run folder or ``latest``
    takes that run, whose config may differ in kimg, report, evaluate and device too. Paths do not count: data are known by their fingerprint.
    """
    ours = config.model_dump(mode="json")
    # a raised kimg is another config for auto: name the run to lengthen it
    run = _find(lambda run: _is_same(run, _config_values(run), ours, config), outdir, resume)
    if run is not None and resume != "auto":
        recorded = TrainConfig.parse(read_yaml(run.config)).model_dump(mode="json")
        if keys := _differing(recorded, {**ours, **{key: recorded[key] for key in FREE}}):
            raise UsageError(
                f"--resume {resume}: its config.yaml differs from this command's in more than kimg, report, evaluate and device: {keys}"
            )
    return run


def find_requested(request: Mapping[str, Any], outdir: Path, resume: str) -> tuple[RunFolder, TrainConfig] | None:
    """Return the run to resume and its config, None for a new one: as `find_run`, but a run is recognised by its `REQUEST` file.

    The config gets the places of the data from the request.
    """
    ours = _request_values(request)
    places = {name: value for name, value in _group(ours, "data").items() if name in DATA_PLACES}

    def moved(run: RunFolder) -> TrainConfig | None:
        config = config_of(run)
        return None if config is None else config.model_copy(update={"data": config.data.model_copy(update=places)})

    def same(run: RunFolder) -> bool:
        config, theirs = moved(run), _request_of(run)
        return config is not None and theirs is not None and _is_same(run, _request_values(theirs), ours, config)

    run = _find(same, outdir, resume)
    if run is None:
        return None
    config, theirs = moved(run), _request_of(run)
    keys = _differing(_request_values(theirs), ours) if theirs is not None else "how its config came about"
    if config is None or keys:
        fault = f"--resume {resume}: {run.path} was begun by another command, which differs in {keys or 'its config'}"
        raise UsageError(f"{fault}: repeat that, or leave the data and the minutes out, for the run's own config")
    return run, config


def _is_same(run: RunFolder, theirs: Mapping[str, Any] | None, ours: Mapping[str, Any], config: TrainConfig) -> bool:
    """Return True if a run was begun with our values: with the same paths, or with the same data in another place, where `config` has them."""
    if theirs is None or _differing(theirs, ours):
        return False
    if theirs == ours:
        return True
    recorded = read_fingerprints(run.state).get(DATA_SET) if run.state.is_file() else None
    with muted():  # `prepare` reports on the data
        found = open_batches(config.data, config.resolution, config.build_terms()["mismatch"].config.negatives).dataset.fingerprint
    if recorded not in (None, found) and not is_finished(run):
        log.info(f"{run.path} has these settings and other data: --resume {shlex.quote(str(run.path))} --changed-data goes on with it")
    return found == recorded


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Return the keys in which two configs or requests differ, with the values; paths that name the same thing do not count."""
    left, right = flatten(_nameless(theirs)), flatten(_nameless(ours))
    keys = [key for key in {**left, **right} if left.get(key) != right.get(key)]
    return ", ".join(f"{key} ({left.get(key)!r}, not {right.get(key)!r})" for key in keys)


def _nameless(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return config values without the places of the data, and with other paths resolved."""
    result = dict(values)
    if data := _group(values, "data"):
        result["data"] = {name: value for name, value in data.items() if name not in DATA_PLACES}
    if values.get("init"):
        result["init"] = str(Path(str(values["init"])).resolve())
    encoder = _group(values, "text_encoder")
    params = _group(encoder, "params")
    if params.get("model") and (folder := Path(str(params["model"]))).is_dir():
        result["text_encoder"] = {**encoder, "params": {**params, "model": str(folder.resolve())}}
    return result


def _group(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a group of settings, none where something else stands there, which `TrainConfig` refuses."""
    group = values.get(key)
    return group if isinstance(group, Mapping) else {}


def _request_values(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request amounts to: config values, and how long the run may take and whether its config is recommended."""
    base, minutes = request.get("base"), request.get("minutes")
    values = with_options(with_overrides(base or {}, request.get("changes", ())), request.get("options", {}))
    return {**values, "minutes": minutes, "recommended": base is None}


def _find(same: Callable[[RunFolder], bool], outdir: Path, resume: str) -> RunFolder | None:
    """Return the newest run that is the `same`, if it is unfinished, or the run that `resume` names."""
    if resume == "auto":
        newest = next((run for run in reversed(list_runs(outdir)) if same(run)), None)
        return None if newest is None or is_finished(newest) else newest
    return named_run(outdir, resume)


def named_run(outdir: Path, resume: str) -> RunFolder | None:
    """Return the run that `resume` names, a folder or ``latest``, None for ``auto`` and ``never``; raises `UsageError` if it has no state."""
    if resume in ("auto", "never"):
        return None
    runs = list_runs(outdir)
    run = runs[-1] if resume == "latest" and runs else RunFolder(Path(resume))
    if not run.state.is_file():
        raise UsageError(f"--resume {resume}: {run.path} has no state to go on from; name a run folder, latest, auto or never")
    return run


def run_training(
    config: TrainConfig,
    outdir: Path,
    *,
    resume: str | RunFolder,
    description: str,
    changed_data: bool = False,
    keep_threads: bool = False,
    files: Mapping[str, str] | None = None,
) -> tuple[RunFolder, int | None]:
    """Train with `config` in a new or an unfinished run folder; returns the folder and the signal that ended the run early.

    `resume` is as for `find_run`, or the run to resume itself. `description` is part of a new folder's name, and `files` (name -> text) are
    written into it. `changed_data` allows a run to continue on another data set than it began with, and `keep_threads` sets torch's number of
    threads to that of the run.
    Of several processes, the first finds or makes the folder, holds its lock and writes; all read the state.
    """
    if config.init is not None:
        init_source(config.init)  # a missing file is an error before the data are packed
    found = None
    if is_first():
        found = resume if isinstance(resume, RunFolder) else find_run(config, outdir, resume)
        if found is None:
            check_outdir(outdir)
    state = found.state if found is not None and found.state.is_file() else None
    session = prepare(config, source=from_first(state))
    with _claimed(found, outdir, description) as folder:
        progress = _continue(session, folder, changed_data)
        if found is not None:
            if session.device.type == "cpu":
                _adjust_threads(folder, keep_threads)
            log.info(
                f"{folder.path} is finished after {progress.nimg:,} images; a larger --kimg lengthens it"
                if is_complete(config, progress)
                else f"going on with {folder.path} after {progress.nimg:,} images"
            )
        if is_first():
            remove_temporary(folder.path)  # the lock is held, so their writers are gone
            new_files = (files or {}) if found is None else {}
            for name, text in new_files.items():
                _write(folder.path / name, text)
            if not (found is not None and is_complete(config, progress)):
                _write(folder.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
            if RECOMMENDED in new_files:
                log.info(f"written, with the reasons: {folder.path / RECOMMENDED}")
        log.info(f"run folder: {folder.path}  (losses and pictures: tensorboard --logdir {shlex.quote(str(outdir))})")
        return folder, train(session, folder, progress)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _claimed(found: RunFolder | None, outdir: Path, description: str) -> Iterator[RunFolder]:
    """Yield the first process's `found` folder, or a new one, in all processes; the first holds the lock on it."""
    if not is_first():
        yield RunFolder(from_first(outdir))
        return
    folder = found or new_run(outdir, description)
    with folder.lock():
        from_first(folder.path.absolute())  # the others may have been started elsewhere
        yield folder


def _continue(session: Session, folder: RunFolder, changed_data: bool) -> Progress:
    """Load the state in `folder`, if there is one, into the networks; returns its position, else the beginning."""
    there = from_first(folder.state.is_file())
    if there and not folder.state.is_file():
        raise GanT2IError(f"process {rank()} cannot read {folder.state}: the run folder must be on a disk that all nodes share")
    if not there:
        if session.config.init is not None:
            log.info(warm_start(session.networks, init_source(session.config.init)))
        return Progress()
    unchanged = {name: fingerprint for name, fingerprint in session.fingerprints.items() if not (changed_data and name == DATA_SET)}
    return load_state(folder.state, session.networks, unchanged)


def _adjust_threads(folder: RunFolder, keep: bool) -> None:
    """Take the number of threads that a run on a CPU had, on which the last bits of its sums depend, or say that they will differ."""
    before, now = read_threads(folder.state) if folder.state.is_file() else None, torch.get_num_threads()
    if before is None or before == now:
        return
    if keep:
        torch.set_num_threads(before)
        log.info(f"threads: {before}, as before, which keeps the run exact; OMP_NUM_THREADS sets another number")
    else:
        log.info(f"threads: {now}, and {before} before, so the last bits differ from those of a run that was not stopped")


def _config_values(run: RunFolder) -> dict[str, Any] | None:
    config = config_of(run)
    return None if config is None else config.model_dump(mode="json")


def config_of(run: RunFolder) -> TrainConfig | None:
    """Return a run's config; None where the folder has none, or one that this version does not understand."""
    try:
        return TrainConfig.parse(read_yaml(run.config))
    except GanT2IError:
        return None


def _request_of(run: RunFolder) -> Any:
    """Return the contents of a run's `REQUEST` file; None without one."""
    try:
        return json.loads((run.path / REQUEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_finished(run: RunFolder) -> bool:
    """Return True if a run has reached the length in its config, and its decoder is finished."""
    config = config_of(run)
    if config is None or not run.state.is_file():
        return False
    return is_complete(config, read_progress(run.state))


def is_complete(config: TrainConfig, progress: Progress) -> bool:
    """Return True if nothing is left of a run that stands at `progress`."""
    return progress.nimg >= config.kimg * 1000 and (progress.decoder_finished or not config.decoder.kimg)
