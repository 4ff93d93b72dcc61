"""The training loop: steps, and the work between them at fixed numbers of images."""

import logging
import math
import shlex
import shutil
import signal
from dataclasses import dataclass
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
    config = session.config
    total = math.ceil(config.kimg * 1000 / config.batch) * config.batch
    shown = progress.nimg + (progress.decoder_nimg if progress.nimg >= total else 0)
    report = (Report if is_first() else SilentReport)(folder, config, session.device, progress.nimg, total, shown)
    with report, StopRequest(alone=world_size() == 1) as stop:
        loop = _Loop(session, folder, report, stop, progress, total)
        loop.run()
        # within StopRequest, as the other processes wait here for the first one's decoder
        finished = from_first(loop.finished) if config.decoder.kimg else loop.finished
    if loop.stopping:
        log.info(_farewell(session, folder, loop.nimg, total, finished))
    # a process that got no signal itself ends as if it had
    return (stop.signal or signal.SIGTERM) if loop.nimg < total or not finished else None


class _Loop:
    """The position of a run between two steps, and the work that is due there."""

    def __init__(self, session: Session, folder: RunFolder, report: Report, stop: StopRequest, progress: Progress, total: int) -> None:
        config = session.config
        self.session, self.folder, self.report, self.stop, self.total = session, folder, report, stop, total
        self.nimg, self.rollbacks, self.saved = progress.nimg, progress.rollbacks, progress.nimg
        self.monitor = Monitor(config.monitor, progress.suspect_since)
        self.decoder_nimg = progress.decoder_nimg
        self.finished = progress.decoder_finished or not config.decoder.kimg
        self.stopping = False
        session.step.rate_scale = config.monitor.rate_factor**self.rollbacks
        session.step.sync.asked_to_stop = lambda: stop.signal is not None

    @property
    def progress(self) -> Progress:
        return Progress(self.nimg, self.rollbacks, self.monitor.suspect_since, self.decoder_nimg)

    def run(self) -> None:
        """Train to the end, or until the run is to stop, and save."""
        if is_first():
            show_beginning(self.session, self.folder, self.report, self.nimg, self.stop)
        self.stopping = self.session.step.sync.stopping_now()
        ending = self.nimg < self.total or not self.finished
        while self.nimg < self.total and not self.stopping:
            self.step()
        if not is_first():
            return
        if self.nimg >= self.total and ending:
            self.finished = end(self.session, self.folder, self.report, self.progress, None if self.stopping else self.stop)
            self.stopping = self.stopping or self.stop.signal is not None
        elif self.nimg != self.saved:
            save(self.session, self.folder, self.progress)

    def step(self) -> None:
        """Take a step, and do what is due after it."""
        session, batch = self.session, self.session.config.batch
        metrics = session.run_step(self.nimg)
        self.nimg += batch
        self.decoder_nimg = 0
        self.report.add(metrics, batch)
        self.stopping = session.step.sync.stopping()  # once a step, so that all processes answer alike
        due = Milestones.after(session, self.nimg, self.total)
        if (due.tick or self.stopping) and self.failed(due):
            return
        if self.nimg < self.total:  # else `end` does it
            if is_first():
                self.draw_and_save(due)
            self.stopping = self.stopping or session.step.sync.stopping_now()

    def failed(self, due: "Milestones") -> bool:
        """Log the metrics; returns True where the monitor finds a failure in them, from which the run has gone back."""
        means = write_stats(self.session, self.report, self.nimg, measured=due.tick)
        # a stop is not a tick: suspicions begin and end at the same nimg in a stopped and an unbroken run
        failure = self.monitor.check(self.nimg, means) if due.tick or not_finite(means) else None
        if failure is None:
            return False
        back = roll_back(self.session, self.folder, self.report, Progress(self.nimg, self.rollbacks), failure)
        self.nimg, self.rollbacks, self.saved = back.nimg, back.rollbacks, back.nimg
        self.monitor = Monitor(self.session.config.monitor, back.suspect_since)
        return True

    def draw_and_save(self, due: "Milestones") -> None:
        """Draw the grid, save and evaluate, each if it is due; a run that stops is quick, and only saves."""
        session, folder, report, nimg, stop = self.session, self.folder, self.report, self.nimg, self.stop
        if due.grid and not self.stopping:
            draw_samples(session, folder, report, nimg, stop)
        if due.snapshot:
            save(session, folder, self.progress)
            report.pause(nimg)
            self.saved = nimg
        if due.evaluation and not self.stopping:  # after saving: the snapshot can be evaluated at any time
            evaluate(session, folder, report, nimg, stop)


def end(session: Session, folder: RunFolder, report: Report, progress: Progress, stop: StopRequest | None) -> bool:
    """Finish the decoder, draw the last grid, save and evaluate, after the last step; without `stop` the run was asked to stop, so only save.

    Returns True if the decoder is finished, or needs no finish.
    """
    nimg, teaches = progress.nimg, bool(session.config.decoder.kimg)
    if not progress.decoder_nimg and (teaches or stop is None):  # else the state holds more, or is about to be saved
        save(session, folder, progress)
    if stop is None:
        return not teaches
    progress = finish_decoder(session, folder, report, progress, stop)
    if not progress.decoder_finished:
        return False
    draw_samples(session, folder, report, nimg, stop)
    save(session, folder, progress)
    report.pause(nimg)
    # after saving, and not when stopping, which must be quick: the snapshot can be evaluated at any time
    if stop.signal is None and is_due(session, nimg, nimg):
        evaluate(session, folder, report, nimg, stop)
    return True


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


def _farewell(session: Session, folder: RunFolder, nimg: int, total: int, finished: bool) -> str:
    """Return the last message of a run that was asked to stop."""
    if nimg < total:
        return f"stopped after {nimg:,} of {total:,} images; the same command resumes"
    if not finished:
        return f"stopped after {nimg:,} images, before the decoder was finished; the same command goes on"
    skipped = f"final grid and evaluation skipped: run gan-t2i evaluate shapes {shlex.quote(str(folder.path))}"
    return f"stopped at the last step; {skipped if is_due(session, nimg, total) else 'the final grid was not drawn'}"


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
