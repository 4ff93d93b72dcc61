"""The training loop: steps, and what happens between them at fixed numbers of pictures."""

import logging
import math
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from gan_t2i.checkpoint import save_snapshot
from gan_t2i.core.distributed import from_first, is_first, world_size
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.files import atomic_file
from gan_t2i.core.phases import phase
from gan_t2i.core.stopping import Interrupted, StopRequest
from gan_t2i.evaluation.match_gap import match_gap
from gan_t2i.runs import RunFolder
from gan_t2i.training.grid import draw_grid
from gan_t2i.training.monitor import ADVICE, DIVERSITY, Monitor, Wrong, diversity, not_finite
from gan_t2i.training.periodic_eval import evaluate, is_due
from gan_t2i.training.report import Report, SilentReport
from gan_t2i.training.schedule import crosses, learning_rate_factor
from gan_t2i.training.session import Session
from gan_t2i.training.state import Progress, load_state, read_progress, save_state

log = logging.getLogger(__name__)

MATCH_GAP = "Text/match_gap"  # what decides which snapshot is the best


def train(session: Session, folder: RunFolder, progress: Progress) -> int | None:
    """Train from `progress` to the configured end; snapshots, state, grids and logs go to `folder`, of which the first process alone writes.

    Where the monitor finds that the run has gone wrong, it goes back to the last good state. Returns the number of the signal that ended it
    early, or None. Raises `GanT2IError` where it went wrong once too often; the last good snapshot and state then stay as they are.
    """
    config, nimg = session.config, progress.nimg
    total = math.ceil(config.kimg * 1000 / config.batch) * config.batch
    monitor = Monitor(config.monitor, progress.suspect_since)
    rollbacks = progress.rollbacks
    session.step.rate_scale = config.monitor.rate_factor**rollbacks
    report = (Report if is_first() else SilentReport)(folder, config, session.device, nimg, total)
    try:
        with StopRequest(alone=world_size() == 1) as stop:
            sync = session.step.sync
            sync.asked_to_stop = lambda: stop.signal is not None
            if is_first():
                begin_pictures(session, folder, report, nimg, stop)
            stopping, saved = sync.stopping_now(), nimg
            while nimg < total and not stopping:
                metrics = session.run_step(nimg)
                nimg += config.batch
                report.add(metrics, config.batch)
                stopping = sync.stopping()  # asked once a step: of several processes, all then do the same
                due = Due.after(session, nimg, total)
                if due.tick or stopping:
                    numbers = write_stats(session, folder, report, nimg, measured=due.tick)
                    # a stop is no tick: doubts rise and fall at the same nimg, whether the run is stopped or not
                    wrong = monitor.look(nimg, numbers) if due.tick or not_finite(numbers) else None
                    if wrong is not None:
                        back = roll_back(session, folder, report, Progress(nimg, rollbacks), wrong)
                        nimg, rollbacks, monitor = back.nimg, back.rollbacks, Monitor(config.monitor, back.suspect_since)
                        saved = nimg
                        continue
                if is_first() and due.grid and not stopping:
                    draw_samples(session, folder, report, nimg, stop)
                if is_first() and due.snapshot:
                    save(session, folder, Progress(nimg, rollbacks, monitor.suspect_since))
                    report.pause(nimg)
                    saved = nimg
                # after saving, and not when asked to stop, which must be quick: the snapshot can be evaluated at any time
                if is_first() and due.evaluation and not stopping:
                    evaluate(session, folder, report, nimg, stop)
                stopping = stopping or sync.stopping_now()
            if is_first() and nimg != saved:
                save(session, folder, Progress(nimg, rollbacks, monitor.suspect_since))
    finally:
        report.close()
    if stopping:
        log.info(_farewell(folder, nimg, total))
    # a process that was not told itself stops as if it had been
    return (stop.signal or signal.SIGTERM) if nimg < total else None


@dataclass(frozen=True)
class Due:
    """What there is to do between two steps."""

    snapshot: bool
    grid: bool
    evaluation: bool
    tick: bool
    """Numbers are checked before anything is saved, and a signal may come while pictures are drawn: each of the others is a tick too."""

    @classmethod
    def after(cls, session: Session, nimg: int, total: int) -> Self:
        """What is due once `nimg` of `total` pictures have been shown."""
        report, batch = session.config.report, session.config.batch
        snapshot, grid, tick = (
            nimg >= total or crosses(nimg, batch, kimg) for kimg in (report.snapshot_kimg, report.grid_kimg, report.stats_kimg)
        )
        evaluation = is_due(session, nimg, total)
        return cls(snapshot, grid, evaluation, tick or snapshot or grid or evaluation)


def _farewell(folder: RunFolder, nimg: int, total: int) -> str:
    """What a run says that was asked to stop."""
    if nimg < total:
        return f"stopped after {nimg:,} of {total:,} images; the same command goes on from there"
    return f"asked to stop at its end, where a last grid and evaluation are left out: gan-t2i evaluate {folder.path} makes up for that"


def begin_pictures(session: Session, folder: RunFolder, report: Report, nimg: int, stop: StopRequest) -> None:
    """What is shown before the first step: of a new run real pictures and a grid, of another the grid that a stop left undrawn."""
    if nimg == 0:
        report.real_pictures(session.preview_batch(32).images, nimg)
    undrawn = crosses(nimg, session.config.batch, session.config.report.grid_kimg) and not folder.grid(nimg).exists()
    if nimg == 0 or undrawn:
        draw_samples(session, folder, report, nimg, stop)


@phase("logging")
def write_stats(session: Session, folder: RunFolder, report: Report, nimg: int, *, measured: bool = True) -> dict[str, float]:
    """Log the means since the last tick, of all processes, and return what the monitor looks at; what is not finite is not logged.

    What takes pictures to measure is left out where it is not to be `measured`.
    """
    config = session.config
    numbers = report.means()
    if measured and not not_finite(numbers):
        numbers[DIVERSITY] = from_first(diversity(session) if is_first() else math.nan)
    if is_first() and not not_finite(numbers):
        factor = learning_rate_factor(nimg, config.kimg * 1000, config.optimizer) * session.step.rate_scale
        extra = {"Progress/lr_g": config.optimizer.g_lr * factor, "Progress/lr_d": config.optimizer.d_lr * factor}
        if measured and (heldout := session.heldout_batch()) is not None:
            extra[MATCH_GAP] = match_gap(session.networks.D, *heldout)
        report.tick(nimg, numbers | extra)
    return numbers


def roll_back(session: Session, folder: RunFolder, report: Report, progress: Progress, wrong: Wrong) -> Progress:
    """Put the last good state back, with lower rates from then on, and return where the run stands now.

    Raises `GanT2IError` with what is `wrong` where there is no state yet, or where the run went back as often as it may.
    """
    config = session.config.monitor
    stopped = f"training stopped at {progress.nimg:,} images: {wrong.what}; "
    path = from_first(_last_good(folder, wrong.suspected) if is_first() else None)
    if path is None:
        raise GanT2IError(f"{stopped}there is no snapshot yet; {ADVICE}")
    if progress.rollbacks >= config.rollbacks:
        again = f"it went back {progress.rollbacks} time{'s' * (progress.rollbacks > 1)}, to ever lower rates; " if progress.rollbacks else ""
        good = folder.snapshot(read_progress(path).nimg)
        kept = f"the last good snapshot is kept: {good}; " if good.is_file() else ""  # report.keep may have thinned it out
        raise GanT2IError(f"{stopped}{again}{kept}{ADVICE}")
    # What the run must find unchanged was checked when it began.
    loaded = load_state(path, session.networks, {})
    nimg, rollbacks = loaded.nimg, progress.rollbacks + 1
    back = Progress(nimg, rollbacks, {} if wrong.suspected else loaded.suspect_since)  # a doubt gets its full patience again
    session.step.rate_scale = config.rate_factor**rollbacks
    message = (
        f"at {progress.nimg:,} images {wrong.what}: going back to {nimg:,} images, with learning rates times {session.step.rate_scale:g} "
        f"(rollback {rollbacks} of {config.rollbacks})"
    )
    log.warning(message)
    if is_first():
        # at once, so that a run that is killed here does not count anew; the snapshot too, which may have been thinned out
        save_snapshot(folder.snapshot(nimg), session.networks.G_ema, session.snapshot_info(nimg))
        save_state(folder.state, session.networks, back, session.fingerprints)
        for snapshot in folder.snapshots():
            if folder.snapshot(nimg).name < snapshot.name <= folder.snapshot(progress.nimg).name:
                snapshot.unlink()  # of networks that had gone wrong
    report.rewind(nimg, message)
    return back


def _last_good(folder: RunFolder, suspected: bool) -> Path | None:
    """The newest state, or where it was `suspected` for long the newest from before, if there is one; None without any."""
    if not folder.state.is_file():
        return None
    before = suspected and read_progress(folder.state).suspect_since and folder.last_healthy.is_file()
    return folder.last_healthy if before else folder.state


def draw_samples(session: Session, folder: RunFolder, report: Report, nimg: int, stop: StopRequest) -> None:
    """Draw the grid of fixed prompts into grids/ and TensorBoard, unless asked to stop meanwhile."""
    try:
        with stop.interruptible():
            grid = draw_grid(session)
    except Interrupted:
        return
    with atomic_file(folder.grid(nimg)) as temporary:
        grid.save(temporary, format="PNG")
    report.picture("Samples/ema", grid, nimg)
    report.pause(nimg)


def save(session: Session, folder: RunFolder, progress: Progress) -> None:
    """Write a snapshot, then the state: a state on disk always has its snapshot. The last state before a doubt is kept beside it."""
    keep, nimg = session.config.report.keep, progress.nimg
    dtype = torch.bfloat16 if session.config.report.snapshot_precision == "bf16" else torch.float32
    save_snapshot(folder.snapshot(nimg), session.networks.G_ema, session.snapshot_info(nimg), dtype)
    if progress.suspect_since and folder.state.is_file() and not read_progress(folder.state).suspect_since:
        with atomic_file(folder.last_healthy) as temporary:
            shutil.copyfile(folder.state, temporary)
    save_state(folder.state, session.networks, progress, session.fingerprints)
    if not progress.suspect_since:
        folder.last_healthy.unlink(missing_ok=True)
    if keep is not None:
        folder.thin_out(keep, MATCH_GAP, nimg)
