"""The training loop: steps, and what happens between them at fixed numbers of pictures."""

import math
import signal
from collections.abc import Callable
from types import FrameType

import torch

from gan_t2i.checkpoint import save_snapshot
from gan_t2i.distributed import is_first, world_size
from gan_t2i.errors import GanT2IError
from gan_t2i.evaluation.match_gap import match_gap
from gan_t2i.files import atomic_file
from gan_t2i.phases import phase
from gan_t2i.runs import RunFolder
from gan_t2i.training.evaluate import evaluate, is_due
from gan_t2i.training.grid import draw_grid
from gan_t2i.training.report import Report, SilentReport
from gan_t2i.training.schedule import crosses, learning_rate_factor
from gan_t2i.training.session import Session
from gan_t2i.training.state import save_state


class StopRequest:
    """Within ``with``, SIGINT and SIGTERM are noted instead of obeyed; a second one is obeyed.

    Of several processes, none obeys: torchrun and cluster managers each pass on a signal that a process may have had already, and end by
    force what does not end in time.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if world_size() == 1:
            signal.signal(number, self._previous[signal.Signals(number)])


def train(session: Session, folder: RunFolder, nimg: int, notify: Callable[[str], None]) -> int | None:
    """Train from `nimg` to the configured end; snapshots, state, grids and logs go to `folder`, of which the first process alone writes.

    Returns the number of the signal that ended it early, or None. Raises `GanT2IError` where the numbers stop being finite; the last
    good snapshot and state then stay as they are.
    """
    config = session.config
    total = math.ceil(config.kimg * 1000 / config.batch) * config.batch
    report = (Report if is_first() else SilentReport)(folder, config, session.device, nimg, total)
    try:
        with StopRequest() as stop:
            session.step.exchange.asked_to_stop = lambda: stop.signal is not None
            if nimg == 0 and is_first():
                report.real_pictures(session.sampler.batch(0, 32).images, nimg)
                draw_samples(session, folder, report, nimg)
            stopping = False
            while nimg < total and not stopping:
                metrics = session.run_step(nimg)
                nimg += config.batch
                report.add(metrics, config.batch)
                stopping = session.step.exchange.stopping()  # asked once a step: what comes after this line is noticed by the next
                saving = stopping or nimg >= total or crosses(nimg, config.batch, config.report.snapshot_kimg)
                if saving or crosses(nimg, config.batch, config.report.stats_kimg):  # numbers are checked before they are saved
                    write_stats(session, folder, report, nimg)
                if is_first() and (nimg >= total or crosses(nimg, config.batch, config.report.grid_kimg)):
                    draw_samples(session, folder, report, nimg)
                if is_first() and saving:
                    save(session, folder, nimg)
                    report.pause(nimg)
                # after saving, and not when asked to stop, which must be quick: the snapshot can be evaluated at any time
                if is_first() and is_due(session, nimg, total) and (nimg >= total or not stopping):
                    evaluate(session, folder, report, nimg)
    finally:
        report.close()
    if nimg < total:
        notify(f"stopped after {nimg:,} of {total:,} images; the same command goes on from there")
    # a process that was not told itself stops as if it had been
    return (stop.signal or signal.SIGTERM) if nimg < total else None


@phase("logging")
def write_stats(session: Session, folder: RunFolder, report: Report, nimg: int) -> None:
    """Log the means since the last tick, of all processes, and check that they are finite."""
    config = session.config
    means = report.means()
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if bad:
        kept = folder.snapshots()
        raise GanT2IError(
            f"training stopped at {nimg:,} images: {', '.join(bad)} is not finite; "
            + (f"the last good snapshot is kept: {kept[-1]}; " if kept else "there is no snapshot yet; ")
            + "try lower learning rates (optimizer.g_lr, optimizer.d_lr) or more penalty (penalty.r1_gamma, penalty.r2_gamma)"
        )
    if not is_first():
        return
    factor = learning_rate_factor(nimg, config.optimizer)
    extra = {"Progress/lr_g": config.optimizer.g_lr * factor, "Progress/lr_d": config.optimizer.d_lr * factor}
    if (heldout := session.heldout_batch()) is not None:
        extra["Text/match_gap"] = match_gap(session.networks.D, *heldout)
    report.tick(nimg, means | extra)


def draw_samples(session: Session, folder: RunFolder, report: Report, nimg: int) -> None:
    """Draw the grid of fixed prompts into grids/ and TensorBoard."""
    grid = draw_grid(session)
    with atomic_file(folder.grid(nimg)) as temporary:
        grid.save(temporary, format="PNG")
    report.picture("Samples/ema", grid, nimg)
    report.pause(nimg)


def save(session: Session, folder: RunFolder, nimg: int) -> None:
    """Write a snapshot, then the state: a state on disk always has its snapshot."""
    dtype = torch.bfloat16 if session.config.report.snapshot_precision == "bf16" else torch.float32
    save_snapshot(folder.snapshot(nimg), session.networks.G_ema, session.snapshot_info(nimg), dtype)
    save_state(folder.state, session.networks, nimg, session.seen)
