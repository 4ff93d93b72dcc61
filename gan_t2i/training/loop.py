"""The training loop: steps, and the work between them at fixed numbers of images."""

import logging
import math
import shlex
import shutil
import signal
from dataclasses import dataclass, replace
from typing import Self

import torch

from gan_t2i.checkpoint import save_snapshot
from gan_t2i.core.distributed import from_first, is_first, world_size
from gan_t2i.core.files import atomic_file
from gan_t2i.core.phases import phase
from gan_t2i.core.stopping import Interrupted, StopRequest
from gan_t2i.evaluation.match_gap import match_gap
from gan_t2i.runs import RunFolder
from gan_t2i.training.decoder import finish_decoder
from gan_t2i.training.grid import draw_grid
from gan_t2i.training.monitor import DIVERSITY, Monitor, diversity, not_finite, roll_back
from gan_t2i.training.periodic_eval import evaluate, is_due
from gan_t2i.training.report import Report, SilentReport
from gan_t2i.training.schedule import crosses, learning_rate_factor
from gan_t2i.training.session import Session
from gan_t2i.training.state import Progress, read_progress, save_state

log = logging.getLogger(__name__)

MATCH_GAP = "Text/match_gap"  # decides which snapshot is the best


def train(session: Session, folder: RunFolder, progress: Progress) -> int | None:
    """Train from `progress` to the configured end; the first process alone writes snapshots, state, grids and logs to `folder`.

    Returns the number of the signal that ended the run early, or None. A failure that the monitor finds rolls the run back; after too many
    `GanT2IError` is raised, and the last good snapshot and state stay.
    """
    config, nimg = session.config, progress.nimg
    total = math.ceil(config.kimg * 1000 / config.batch) * config.batch
    monitor, rollbacks = Monitor(config.monitor, progress.suspect_since), progress.rollbacks
    session.step.rate_scale = config.monitor.rate_factor**rollbacks
    report = (Report if is_first() else SilentReport)(folder, config, session.device, nimg, total)
    with report, StopRequest(alone=world_size() == 1) as stop:
        sync = session.step.sync
        sync.asked_to_stop = lambda: stop.signal is not None
        if is_first():
            show_beginning(session, folder, report, nimg, stop)
        stopping, saved, finished = sync.stopping_now(), nimg, progress.decoder_finished or not config.decoder.kimg
        ending = nimg < total or not finished
        while nimg < total and not stopping:
            metrics = session.run_step(nimg)
            nimg += config.batch
            report.add(metrics, config.batch)
            stopping = sync.stopping()  # once a step, so that all processes answer alike
            due = Milestones.after(session, nimg, total)
            if due.tick or stopping:
                means = write_stats(session, report, nimg, measured=due.tick)
                # a stop is not a tick: suspicions begin and end at the same nimg in a stopped and an unbroken run
                failure = monitor.check(nimg, means) if due.tick or not_finite(means) else None
                if failure is not None:
                    back = roll_back(session, folder, report, Progress(nimg, rollbacks), failure)
                    nimg, rollbacks, monitor = back.nimg, back.rollbacks, Monitor(config.monitor, back.suspect_since)
                    saved = nimg
                    continue
            if nimg >= total:
                break
            if is_first() and due.grid and not stopping:
                draw_samples(session, folder, report, nimg, stop)
            if is_first() and due.snapshot:
                save(session, folder, Progress(nimg, rollbacks, monitor.suspect_since))
                report.pause(nimg)
                saved = nimg
            # after saving, and not when stopping, which must be quick: the snapshot can be evaluated at any time
            if is_first() and due.evaluation and not stopping:
                evaluate(session, folder, report, nimg, stop)
            stopping = stopping or sync.stopping_now()
        if is_first() and nimg >= total and ending:
            finished = end(session, folder, report, Progress(nimg, rollbacks, monitor.suspect_since), None if stopping else stop)
            stopping = stopping or stop.signal is not None
        elif is_first() and nimg != saved:
            save(session, folder, Progress(nimg, rollbacks, monitor.suspect_since))
    if config.decoder.kimg:
        finished = from_first(finished)
    if stopping:
        log.info(_farewell(folder, nimg, total, finished))
    # a process that got no signal itself ends as if it had
    return (stop.signal or signal.SIGTERM) if nimg < total or not finished else None


def end(session: Session, folder: RunFolder, report: Report, progress: Progress, stop: StopRequest | None) -> bool:
    """Finish the decoder, draw the last grid, save and evaluate, after the last step; without `stop` the run was asked to stop, so only save.

    Returns True if the decoder is finished, or needs no finish.
    """
    nimg = progress.nimg
    finished = stop is not None and finish_decoder(session, report, nimg, stop)
    if stop is not None and finished:
        draw_samples(session, folder, report, nimg, stop)
    save(session, folder, replace(progress, decoder_finished=finished))
    report.pause(nimg)
    # after saving, and not when stopping, which must be quick: the snapshot can be evaluated at any time
    if stop is not None and finished and stop.signal is None and is_due(session, nimg, nimg):
        evaluate(session, folder, report, nimg, stop)
    return finished or not session.config.decoder.kimg


@dataclass(frozen=True)
class Milestones:
    """Work that is due between two steps."""

    snapshot: bool
    grid: bool
    evaluation: bool
    tick: bool
    """True for any of the others too: metrics are checked before anything is saved, and a signal may come while a grid is drawn."""

    @classmethod
    def after(cls, session: Session, nimg: int, total: int) -> Self:
        """Return what is due after `nimg` of `total` images."""
        report, batch = session.config.report, session.config.batch
        snapshot, grid, tick = (
            nimg >= total or crosses(nimg, batch, kimg) for kimg in (report.snapshot_kimg, report.grid_kimg, report.stats_kimg)
        )
        evaluation = is_due(session, nimg, total)
        return cls(snapshot, grid, evaluation, tick or snapshot or grid or evaluation)


def _farewell(folder: RunFolder, nimg: int, total: int, finished: bool) -> str:
    """Return the last message of a run that was asked to stop."""
    if nimg < total:
        return f"stopped after {nimg:,} of {total:,} images; the same command resumes"
    if not finished:
        return f"stopped after {nimg:,} images, before the decoder was finished; the same command goes on"
    return f"stopped at the last step; final grid and evaluation skipped: run gan-t2i evaluate shapes {shlex.quote(str(folder.path))}"


def show_beginning(session: Session, folder: RunFolder, report: Report, nimg: int, stop: StopRequest) -> None:
    """Show real images and a grid before the first step of a new run, or the grid that a stop left undrawn."""
    if nimg == 0:
        report.real_images(session.preview_batch(32).images, nimg)
        if not session.networks.autoencoder.is_identity:
            images = session.preview_batch(8).images
            report.autoencoder(session.autoencoder, images, session.rebuilt(images))
    undrawn = crosses(nimg, session.config.batch, session.config.report.grid_kimg) and not folder.grid(nimg).exists()
    if nimg == 0 or undrawn:
        draw_samples(session, folder, report, nimg, stop)


@phase("logging")
def write_stats(session: Session, report: Report, nimg: int, *, measured: bool = True) -> dict[str, float]:
    """Log the means over all processes since the last tick, and return them for the monitor; means that are not finite are not logged.

    With `measured` False, metrics that need images to be generated are left out.
    """
    config = session.config
    means = report.means()
    if measured and not not_finite(means):
        means[DIVERSITY] = from_first(diversity(session) if is_first() else math.nan)
    if is_first() and not not_finite(means):
        factor = learning_rate_factor(nimg, config.kimg * 1000, config.optimizer) * session.step.rate_scale
        extra = {"Progress/lr_g": config.optimizer.g_lr * factor, "Progress/lr_d": config.optimizer.d_lr * factor}
        if measured and (heldout := session.heldout_batch()) is not None:
            extra[MATCH_GAP] = match_gap(session.networks.D, *heldout)
        report.tick(nimg, means | extra)
    return means


def draw_samples(session: Session, folder: RunFolder, report: Report, nimg: int, stop: StopRequest) -> None:
    """Draw the grid of fixed prompts into grids/ and TensorBoard; a request to stop interrupts it."""
    try:
        with stop.interruptible():
            grid = draw_grid(session)
    except Interrupted:
        return
    with atomic_file(folder.grid(nimg)) as temporary:
        grid.save(temporary, format="PNG")
    report.image("Samples/ema", grid, nimg)
    report.pause(nimg)


def save(session: Session, folder: RunFolder, progress: Progress) -> None:
    """Write a snapshot, then the state, so that a state always has its snapshot. The last state before a suspicion is kept beside it."""
    keep, nimg = session.config.report.keep, progress.nimg
    dtype = torch.bfloat16 if session.config.report.snapshot_precision == "bf16" else torch.float32
    save_snapshot(folder.snapshot(nimg), session.networks.images, session.snapshot_info(nimg), dtype)
    if progress.suspect_since and folder.state.is_file() and not read_progress(folder.state).suspect_since:
        with atomic_file(folder.last_healthy) as temporary:
            shutil.copyfile(folder.state, temporary)
    save_state(folder.state, session.networks, progress, session.fingerprints)
    if not progress.suspect_since:
        folder.last_healthy.unlink(missing_ok=True)
    if keep is not None:
        folder.thin_out(keep, MATCH_GAP, nimg)
