"""``gan-t2i evaluate``: how well a trained model obeys its prompts."""

import json
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
@click.option("--seeds", type=click.IntRange(1), default=4, show_default=True, help="Pictures a prompt.")
@click.option("--limit", type=click.IntRange(2), help="Only the first so many prompts of each task.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write scores and failures here.")
@click.option("--sheet", "sheet_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the sheet of failures here.")
@click.option("--text-encoder", metavar="FOLDER|NAME", help="Where the text encoder's weights are, if not where training found them.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
def command(
    model: str,
    suite: str,
    seeds: int,
    limit: int | None,
    json_file: Path | None,
    sheet_file: Path | None,
    text_encoder: str | None,
    device: str,
) -> None:
    """Let a model draw a benchmark's prompts, and grade the pictures.

    RUN_OR_SNAPSHOT is a run folder, a snapshot file, or latest: the newest run in runs/. The suite "shapes" asks for combinations that the
    built-in data set never shows in training; a model of other pictures scores low. Chance is the score with the captions shuffled.

    Of a snapshot in a run folder, scores and the worst failures go into the run's evaluation/ folder, unless told, and to TensorBoard.
    """
    from gan_t2i.evaluation.shapes_suite import run_suite
    from gan_t2i.runs import resolve_snapshot, run_of
    from gan_t2i.sampling.pipeline import Text2Image
    from gan_t2i.sampling.save import save_png

    def notify(message: str) -> None:
        click.echo(message, err=True)

    snapshot = resolve_snapshot(model)
    pipeline = Text2Image.load(snapshot, text_encoder=text_encoder, device=device, notify=notify)

    def generate(prompts: Sequence[str], numbers: Sequence[int]) -> "list[Image.Image]":
        return pipeline.generate(prompts, seeds=numbers, notify=notify)

    result = run_suite(generate, seeds=seeds, limit=limit)
    click.echo(result.table())
    nimg = pipeline.info.nimg
    run = run_of(snapshot)
    if run is not None:
        json_file = json_file or run.path / "evaluation" / f"{suite}-{nimg:09d}.json"
        sheet_file = sheet_file or run.path / "evaluation" / f"{suite}-{nimg:09d}.png"
    if json_file is not None:
        write_json(json_file, {"snapshot": str(snapshot), "nimg": nimg, "resolution": pipeline.info.resolution, **result.to_json()})
        notify(f"written: {json_file}")
    picture = result.sheet()
    if sheet_file is not None and picture is not None:
        save_png(picture, sheet_file)
        notify(f"written: {sheet_file}")
    if run is not None:
        write_scalars(run, result.scalars(), nimg)


def write_scalars(run: "RunFolder", scalars: Mapping[str, float], nimg: int) -> None:
    """Show the values in the run's TensorBoard at step `nimg`."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.path)) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value, nimg)


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write the values; raises `UsageError` where `path` cannot be written."""
    from gan_t2i.errors import UsageError
    from gan_t2i.files import atomic_file

    try:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
