"""``gan-t2i evaluate``: how well a trained model obeys its prompts, and how real its pictures look."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gan_t2i.cli.options import given, picture_options
from gan_t2i.cli.run_data import check_features, data_settings, load_data, open_spaces

if TYPE_CHECKING:
    from PIL import Image

    from gan_t2i.evaluation.pictures import PicturesResult
    from gan_t2i.evaluation.retrieval import RetrievalResult
    from gan_t2i.runs import RunFolder
    from gan_t2i.sampling.pipeline import Text2Image
    from gan_t2i.training.config import DataConfig

log = logging.getLogger(__name__)


@click.command("evaluate")
@click.argument("model", metavar="RUN_OR_SNAPSHOT", default="latest")
@click.option(
    "--suite",
    type=click.Choice(["shapes", "retrieval", "pictures"]),
    metavar="NAME",
    default="shapes",
    show_default=True,
    help="Which benchmark: shapes, retrieval or pictures.",
)
@click.option("--seeds", type=click.IntRange(1), help="Pictures a prompt.  [default: shapes 4, retrieval 1, pictures 4, for their diversity]")
@click.option("--limit", type=click.IntRange(2), help="Only so many prompts of each task, or captions of each side.")
@click.option(
    "--features",
    metavar="NAME",
    multiple=True,
    help="Of pictures: compared in random, matcher, efficientnet-lite2 or inception; may be repeated.  [default: random and matcher]",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write scores and failures here.")
@click.option("--sheet", "sheet_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the sheet of failures here.")
@click.option("--data", help="Of retrieval and pictures: captioned pictures, as for train.  [default: what the run was trained on]")
@picture_options
@click.option("--text-encoder", metavar="FOLDER|NAME", help="Where the text encoder's weights are, if not where training found them.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
def command(
    model: str,
    suite: str,
    seeds: int | None,
    limit: int | None,
    features: tuple[str, ...],
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

    The suite "pictures" asks whether drawn pictures are like the real ones, whatever the words: KID, precision, recall, density, coverage and
    the diversity among seeds, in networks that the discriminator did not use, each beside the score of real pictures.

    Of a snapshot in a run folder, scores and the worst failures go into the run's evaluation/ folder, unless told, and to TensorBoard; with
    --limit or other --seeds, under names that say so.
    """
    from gan_t2i.core.errors import UsageError
    from gan_t2i.evaluation.results import write_scalars
    from gan_t2i.runs import resolve_snapshot, run_of
    from gan_t2i.sampling.pipeline import Text2Image

    chosen = given(**reading)
    if suite == "shapes" and (data is not None or chosen):
        raise UsageError("--data and how it is read go with --suite retrieval and pictures; shapes has its own prompts")
    if suite != "shapes" and sheet_file is not None:
        raise UsageError("--sheet goes with --suite shapes")
    if suite == "pictures" and seeds == 1:
        raise UsageError("--suite pictures needs at least two seeds, for the diversity among them")
    if suite != "pictures" and features:
        raise UsageError("--features goes with --suite pictures")
    snapshot = resolve_snapshot(model)
    run = run_of(snapshot)
    settings = data_settings(run, data, chosen) if suite != "shapes" else None
    if suite == "pictures":
        from gan_t2i.evaluation.pictures import FEATURES

        features = check_features(features, run, FEATURES)
    pipeline = Text2Image.load(snapshot, text_encoder=text_encoder, device=device)
    head = {"snapshot": str(snapshot), "nimg": pipeline.info.nimg, "resolution": pipeline.info.resolution}
    if settings is None:
        scalars = _shapes(pipeline, head, run, seeds, limit, json_file, sheet_file)
    elif suite == "retrieval":
        scalars = _retrieval(pipeline, settings, head, run, seeds, limit, json_file)
    else:
        scalars = _pictures(pipeline, settings, head, run, seeds, limit, features, json_file)
    if run is not None:
        write_scalars(run, scalars, pipeline.info.nimg)


def _generate(pipeline: "Text2Image") -> "Callable[[Sequence[str], Sequence[int]], list[Image.Image]]":
    return lambda prompts, numbers: pipeline.generate(prompts, seeds=numbers)


def _shapes(
    pipeline: "Text2Image",
    head: Mapping[str, object],
    run: "RunFolder | None",
    seeds: int | None,
    limit: int | None,
    json_file: Path | None,
    sheet_file: Path | None,
) -> dict[str, float]:
    from gan_t2i.evaluation.shapes.suite import SEEDS, run_suite, write_result

    result = run_suite(_generate(pipeline), limit=limit, seeds=seeds or SEEDS)
    click.echo(result.table())
    for path in write_result(result, head, run, pipeline.info.nimg, json_file, sheet_file):
        log.info(f"written: {path}")
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
    from gan_t2i.evaluation.retrieval import LIMIT, SEEDS, prepare_judge, run_retrieval

    dataset = load_data(pipeline, settings)
    judge = prepare_judge(dataset, pipeline.encoder, pipeline.device)
    result = run_retrieval(_generate(pipeline), judge, limit=limit or LIMIT, seeds=seeds or SEEDS)
    return _show(result, {**head, "data_fingerprint": dataset.fingerprint}, run, pipeline.info.nimg, json_file)


def _pictures(
    pipeline: "Text2Image",
    settings: "DataConfig",
    head: Mapping[str, object],
    run: "RunFolder | None",
    seeds: int | None,
    limit: int | None,
    features: Sequence[str],
    json_file: Path | None,
) -> dict[str, float]:
    from gan_t2i.evaluation.pictures import LIMIT, SEEDS, check_enough, run_pictures

    dataset = load_data(pipeline, settings)
    check_enough(dataset, limit or LIMIT)
    spaces = open_spaces(features, pipeline, dataset)
    result = run_pictures(_generate(pipeline), dataset, spaces, limit=limit or LIMIT, seeds=seeds or SEEDS)
    return _show(result, {**head, "data_fingerprint": dataset.fingerprint}, run, pipeline.info.nimg, json_file)


def _show(
    result: "RetrievalResult | PicturesResult", head: Mapping[str, object], run: "RunFolder | None", nimg: int, json_file: Path | None
) -> dict[str, float]:
    """Print the table, and write the result after `head` where told, else into the run; returns what TensorBoard shows."""
    from gan_t2i.evaluation.results import result_path, write_json

    click.echo(result.table())
    values = result.to_json()
    path = json_file or (result_path(run, values["suite"], nimg, result.changed) if run else None)
    if path is not None:
        write_json(path, {**head, **values})
        log.info(f"written: {path}")
    return result.scalars()
