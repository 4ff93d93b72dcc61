"""The benchmark of shapes on G's average, at chosen nimg. Nothing in training reads its results."""

from collections.abc import Sequence

from PIL import Image

from gan_t2i.core.phases import phase
from gan_t2i.core.stopping import Interrupted, StopRequest
from gan_t2i.evaluation.results import write
from gan_t2i.evaluation.shapes.prompts import prompts_for
from gan_t2i.evaluation.shapes.suite import run_suite
from gan_t2i.runs import RunFolder
from gan_t2i.sampling.draw import draw
from gan_t2i.training.report import Report
from gan_t2i.training.schedule import crosses
from gan_t2i.training.session import Session


def is_due(session: Session, nimg: int, total: int) -> bool:
    """True if an evaluation follows the step that ended at `nimg`."""
    config = session.config
    return config.evaluate.suite != "none" and (nimg >= total or crosses(nimg, config.batch, config.evaluate.kimg))


@phase("logging")
def evaluate(session: Session, folder: RunFolder, report: Report, nimg: int, stop: StopRequest) -> None:
    """Evaluate as ``gan-t2i evaluate shapes`` does with the snapshot of this nimg: the same scores, files and scalars.

    A request to stop interrupts it and leaves nothing.
    """
    networks, config = session.networks, session.config.evaluate
    prompts = prompts_for(session.config.data.source)

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return list(draw(networks.images, session.encoder, prompts, seeds))

    try:
        with stop.interruptible():
            result = run_suite(generate, seeds=config.seeds, limit=config.limit, progress=False, prompts=prompts)
    except Interrupted:
        return
    snapshot = folder.snapshot(nimg)
    metadata = {"snapshot": str(snapshot) if snapshot.is_file() else None, "nimg": nimg, "resolution": session.config.resolution}
    write(result, folder, metadata)
    report.scalars(result.scalars(), nimg)
    report.pause(nimg)
