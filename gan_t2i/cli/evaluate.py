"""``gan-t2i evaluate``: how well a trained model obeys its prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from PIL import Image

    from gan_t2i.runs import RunFolder


@click.command("evaluate")
@click.argument("model", metavar="RUN_OR_SNAPSHOT", default="latest")
@click.option("--suite", type=click.Choice(["shapes"]), default="shapes", show_default=True, help="Which benchmark.")
@click.option("--seeds", type=click.IntRange(1), help="Pictures a prompt.  [default: 4]")
@click.option("--limit", type=click.IntRange(2), help="Only the first so many prompts of each task.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write scores and failures here.")
@click.option("--sheet", "sheet_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the sheet of failures here.")
@click.option("--text-encoder", metavar="FOLDER|NAME", help="Where the text encoder's weights are, if not where training found them.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
def command(
    model: str,
    suite: str,
    seeds: int | None,
    limit: int | None,
    json_file: Path | None,
    sheet_file: Path | None,
    text_encoder: str | None,
    device: str,
) -> None:
    """Let a model draw a benchmark's prompts, and grade the pictures.

    RUN_OR_SNAPSHOT is a run folder, a snapshot file, or latest: the newest run in runs/. The suite "shapes" asks for combinations that the
    built-in data set never shows in training; a model of other pictures scores low. Chance is the score with the captions shuffled.

    Of a snapshot in a run folder, scores and the worst failures go into the run's evaluation/ folder, unless told, and to TensorBoard; with
    --limit or other --seeds, under names that say so.
    """
    from gan_t2i.evaluation.shapes_suite import SEEDS, run_suite, write_result
    from gan_t2i.runs import resolve_snapshot, run_of
    from gan_t2i.sampling.pipeline import Text2Image

    def notify(message: str) -> None:
        click.echo(message, err=True)

    snapshot = resolve_snapshot(model)
    pipeline = Text2Image.load(snapshot, text_encoder=text_encoder, device=device, notify=notify)

    def generate(prompts: Sequence[str], numbers: Sequence[int]) -> "list[Image.Image]":
        return pipeline.generate(prompts, seeds=numbers, notify=notify)

    nimg, run = pipeline.info.nimg, run_of(snapshot)
    head = {"snapshot": str(snapshot), "nimg": nimg, "resolution": pipeline.info.resolution}
    result = run_suite(generate, limit=limit, seeds=seeds or SEEDS)
    click.echo(result.table())
    for path in write_result(result, head, run, nimg, json_file, sheet_file):
        notify(f"written: {path}")
    if run is not None:
        write_scalars(run, result.scalars(), nimg)


def write_scalars(run: "RunFolder", scalars: Mapping[str, float], nimg: int) -> None:
    """Show the values in the run's TensorBoard at step `nimg`."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.path)) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value, nimg)
