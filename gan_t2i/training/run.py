"""From a config and a place to a run: a new folder, or the unfinished one that the same command began."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import yaml

from gan_t2i.core.config import read_yaml
from gan_t2i.core.distributed import from_first, is_first, rank
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.files import atomic_file, remove_temporary
from gan_t2i.runs import RunFolder, list_runs, new_run
from gan_t2i.training.config import TrainConfig
from gan_t2i.training.loop import train
from gan_t2i.training.session import Session, prepare
from gan_t2i.training.state import DATA_SET, Progress, load_state, read_progress
from gan_t2i.training.warm_start import init_source, warm_start

log = logging.getLogger(__name__)


def find_run(config: TrainConfig, outdir: Path, resume: str) -> RunFolder | None:
    """The run to go on with, None for a new one.

    `resume`: ``auto`` takes the newest run in `outdir` with exactly this config, if it is unfinished; ``never`` none; else a run folder,
    or ``latest``, whose config must agree but for kimg, report, evaluate and device.
    """
    if resume == "never":
        return None
    if resume == "auto":
        # a kimg that was raised is another config here: name the run to lengthen it
        same = [run for run in list_runs(outdir) if _config_of(run) == config]
        return same[-1] if same and not _is_finished(same[-1], config) else None
    runs = list_runs(outdir)
    run = runs[-1] if resume == "latest" and runs else RunFolder(Path(resume))
    if not run.state.is_file():
        raise UsageError(f"--resume {resume}: {run.path} has no state to go on from; name a run folder, latest, auto or never")
    recorded = _config_of(run)
    free = {"kimg": config.kimg, "report": config.report, "evaluate": config.evaluate, "device": config.device}
    if recorded is None or recorded.model_copy(update=free) != config:
        raise UsageError(f"--resume {resume}: its config.yaml differs from this command's in more than kimg, report, evaluate and device")
    return run


def run_training(
    config: TrainConfig, outdir: Path, *, resume: str, description: str, changed_data: bool = False
) -> tuple[RunFolder, int | None]:
    """Train as `config` says, in a new or an unfinished run folder; returns the folder and the signal that ended it early.

    `changed_data`: whether a run may go on with another data set than it began with. Of several processes, the first finds or makes the
    folder, holds its lock and writes; all read the state.
    """
    if config.init is not None:
        init_source(config.init)  # what is missing is missed before the data are packed
    found = find_run(config, outdir, resume) if is_first() else None
    session = prepare(config)
    with _claimed(found, outdir, description) as folder:
        progress = _continue(session, folder, changed_data)
        if found is not None:
            log.info(f"going on with {folder.path} after {progress.nimg:,} images")
        if is_first():
            remove_temporary(folder.path)  # the lock is held: whoever wrote them is gone
            with atomic_file(folder.config) as temporary:
                temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8")
        log.info(f"run folder: {folder.path}  (losses and pictures: tensorboard --logdir {outdir})")
        return folder, train(session, folder, progress)


@contextlib.contextmanager
def _claimed(found: RunFolder | None, outdir: Path, description: str) -> Iterator[RunFolder]:
    """The first process's `found` folder, or a new one, in all processes; the lock on it is the first's."""
    if not is_first():
        yield RunFolder(from_first(outdir))
        return
    folder = found or new_run(outdir, description)
    with folder.lock():
        from_first(folder.path.absolute())  # the others may have been started elsewhere
        yield folder


def _continue(session: Session, folder: RunFolder, changed_data: bool) -> Progress:
    """Put the state in `folder`, if there is one, into the networks; returns where it stands, else the beginning."""
    there = from_first(folder.state.is_file())
    if there and not folder.state.is_file():
        raise GanT2IError(f"process {rank()} cannot read {folder.state}: the run folder must be on a disk that all nodes share")
    if not there:
        if session.config.init is not None:
            log.info(warm_start(session.networks, init_source(session.config.init)))
        return Progress()
    unchanged = {name: fingerprint for name, fingerprint in session.fingerprints.items() if not (changed_data and name == DATA_SET)}
    return load_state(folder.state, session.networks, unchanged)


def _config_of(run: RunFolder) -> TrainConfig | None:
    try:
        return TrainConfig.parse(read_yaml(run.config))
    except GanT2IError:  # a folder without a config that this version understands is not this command's run
        return None


def _is_finished(run: RunFolder, config: TrainConfig) -> bool:
    if not run.state.is_file():
        return False
    return read_progress(run.state).nimg >= config.kimg * 1000
