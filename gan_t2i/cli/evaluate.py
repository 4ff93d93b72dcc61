"""``gan-t2i evaluate``: how well a trained model obeys its prompts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gan_t2i.cli.options import given, picture_options

if TYPE_CHECKING:
    from PIL import Image

    from gan_t2i.runs import RunFolder
    from gan_t2i.sampling.pipeline import Text2Image
    from gan_t2i.training.config import DataConfig


@click.command("evaluate")
@click.argument("model", metavar="RUN_OR_SNAPSHOT", default="latest")
@click.option("--suite", type=click.Choice(["shapes", "retrieval"]), default="shapes", show_default=True, help="Which benchmark.")
@click.option("--seeds", type=click.IntRange(1), help="Pictures a prompt.  [default: shapes 4, retrieval 1]")
@click.option("--limit", type=click.IntRange(2), help="Only so many prompts of each task, or captions of each side.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write scores and failures here.")
@click.option("--sheet", "sheet_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the sheet of failures here.")
@click.option("--data", help="Of retrieval: captioned pictures, as for train.  [default: what the run was trained on]")
@picture_options
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
    data: str | None,
    **reading: str | None,
) -> None:
    """Let a model draw a benchmark's prompts, and grade the pictures.

    RUN_OR_SNAPSHOT is a run folder, a snapshot file, or latest: the newest run in runs/. The suite "shapes" asks for combinations that the
    built-in data set never shows in training; a model of other pictures scores low. Chance is the score with the captions shuffled.

    The suite "retrieval" takes any captioned pictures: a matcher, trained on real pairs alone and kept in the cache, looks for a picture's
    caption among a hundred (R@1). Its scores of real pictures stand beside those of generated ones, for training and held-out captions.

    Of a snapshot in a run folder, scores and the worst failures go into the run's evaluation/ folder, unless told, and to TensorBoard; with
    --limit or other --seeds, under names that say so.
    """
    from gan_t2i.errors import UsageError
    from gan_t2i.runs import resolve_snapshot, run_of
    from gan_t2i.sampling.pipeline import Text2Image

    chosen = given(**reading)
    if suite == "shapes" and (data is not None or chosen):
        raise UsageError("--data and how it is read go with --suite retrieval; shapes has its own prompts")
    if suite == "retrieval" and sheet_file is not None:
        raise UsageError("--sheet goes with --suite shapes")
    snapshot = resolve_snapshot(model)
    run = run_of(snapshot)
    settings = _data_settings(run, data, chosen) if suite == "retrieval" else None
    pipeline = Text2Image.load(snapshot, text_encoder=text_encoder, device=device, notify=_notify)
    head = {"snapshot": str(snapshot), "nimg": pipeline.info.nimg, "resolution": pipeline.info.resolution}
    if settings is None:
        scalars = _shapes(pipeline, head, run, seeds, limit, json_file, sheet_file)
    else:
        scalars = _retrieval(pipeline, settings, head, run, seeds, limit, json_file)
    if run is not None:
        write_scalars(run, scalars, pipeline.info.nimg)


def _notify(message: str) -> None:
    click.echo(message, err=True)


def _data_settings(run: "RunFolder | None", data: str | None, chosen: Mapping[str, object]) -> "DataConfig":
    """Which data: those of `data`, read as `chosen`, else the run's own; raises `UsageError` where neither is known."""
    from gan_t2i.config import read_yaml
    from gan_t2i.errors import UsageError
    from gan_t2i.training.config import DataConfig, TrainConfig

    if data is not None:
        return DataConfig.parse({"source": data, **chosen})
    if run is None:
        raise UsageError("a snapshot outside of a run folder does not tell its data: name them with --data")
    if chosen:
        raise UsageError("how the data are read goes with --data; without it they are read as in training")
    return TrainConfig.parse(read_yaml(run.config)).data


def _generate(pipeline: "Text2Image") -> "Callable[[Sequence[str], Sequence[int]], list[Image.Image]]":
    return lambda prompts, numbers: pipeline.generate(prompts, seeds=numbers, notify=_notify)


def _shapes(
    pipeline: "Text2Image",
    head: Mapping[str, object],
    run: "RunFolder | None",
    seeds: int | None,
    limit: int | None,
    json_file: Path | None,
    sheet_file: Path | None,
) -> dict[str, float]:
    from gan_t2i.evaluation.shapes_suite import SEEDS, run_suite, write_result

    result = run_suite(_generate(pipeline), limit=limit, seeds=seeds or SEEDS)
    click.echo(result.table())
    for path in write_result(result, head, run, pipeline.info.nimg, json_file, sheet_file):
        _notify(f"written: {path}")
    return result.scalars()


def _retrieval(
    pipeline: "Text2Image",
    settings: "DataConfig",
    head: Mapping[str, object],
    run: "RunFolder | None",
    seeds: int | None,
    limit: int | None,
    json_file: Path | None,
) -> dict[str, float]:
    from gan_t2i.data.builtin import resolve_source
    from gan_t2i.data.packing import load_dataset
    from gan_t2i.errors import UsageError
    from gan_t2i.evaluation.results import result_path, write_json
    from gan_t2i.evaluation.retrieval_suite import LIMIT, SEEDS, prepare_judge, run_retrieval

    info = pipeline.info
    if settings.stream:
        raise UsageError("the suite retrieval packs its data, and this run streams them: name a set that the cache has room for with --data")
    source = resolve_source(settings.source, info.resolution, notify=_notify, alpha=settings.alpha)
    dataset = load_dataset(source, info.resolution, settings, notify=_notify)
    if dataset.fingerprint != info.data_fingerprint:
        _notify("these are not the pictures and captions that the model was trained on: both sides may be new to it, or neither")
    device = next(pipeline.generator.parameters()).device
    judge = prepare_judge(dataset, pipeline.encoder, device, notify=_notify)
    result = run_retrieval(_generate(pipeline), judge, limit=limit or LIMIT, seeds=seeds or SEEDS)
    click.echo(result.table())
    path = json_file or (result_path(run, "retrieval", info.nimg, result.changed) if run else None)
    if path is not None:
        write_json(path, {**head, "data_fingerprint": dataset.fingerprint, **result.to_json()})
        _notify(f"written: {path}")
    return result.scalars()


def write_scalars(run: "RunFolder", scalars: Mapping[str, float], nimg: int) -> None:
    """Show the values in the run's TensorBoard at step `nimg`."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.path)) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value, nimg)
