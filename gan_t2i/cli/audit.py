"""``gan-t2i audit``: whether a trained model draws, or copies its training pictures."""

import logging
from pathlib import Path
from typing import TextIO

import click

from gan_t2i.cli.options import given, picture_options
from gan_t2i.cli.run_data import check_features, data_settings, load_data, open_spaces
from gan_t2i.cli.sample import read_prompts

log = logging.getLogger(__name__)


@click.command("audit")
@click.argument("model", metavar="RUN_OR_SNAPSHOT", default="latest")
@click.option("--prompts", "prompt_file", type=click.File("r", encoding="utf-8"), help="Prompts of your own, one a line; - for standard input.")
@click.option("--features", metavar="NAME", help="Distances are taken in random, efficientnet-lite2 or inception.  [default: random]")
@click.option("--limit", type=click.IntRange(1), help="Only so many prompts of each kind.  [default: 200]")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures and the closest pictures here.")
@click.option("--sheet", "sheet_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the sheet of the closest pictures here.")
@click.option("--data", help="The training pictures, as for train.  [default: what the run was trained on]")
@picture_options
@click.option("--text-encoder", metavar="FOLDER|NAME", help="Where the text encoder's weights are, if not where training found them.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
def command(
    model: str,
    prompt_file: TextIO | None,
    features: str | None,
    limit: int | None,
    json_file: Path | None,
    sheet_file: Path | None,
    data: str | None,
    text_encoder: str | None,
    device: str,
    **reading: str | None,
) -> None:
    """Look for the training pictures nearest to what a model draws.

    RUN_OR_SNAPSHOT is a run folder, a snapshot file, or latest: the newest run in runs/. Unless --prompts says what to draw, training, held-out
    and recombined captions are drawn, and each picture's distance to its nearest training picture is held against that of real pictures that
    the model was not trained on.

    Of a snapshot in a run folder, figures and the sheet (each drawn picture beside its nearest training pictures) go into the run's
    evaluation/ folder, unless told, and to TensorBoard.
    """
    from gan_t2i.core.errors import UsageError
    from gan_t2i.core.images import save_png
    from gan_t2i.evaluation.copies import LIMIT, NETWORK, check_audit, run_audit
    from gan_t2i.evaluation.results import result_path, write_json, write_scalars
    from gan_t2i.runs import resolve_snapshot, run_of
    from gan_t2i.sampling.pipeline import Text2Image

    prompts = read_prompts(prompt_file)
    if prompt_file is not None and not prompts:
        raise UsageError(f"--prompts {prompt_file.name} holds no prompt")
    snapshot = resolve_snapshot(model)
    run = run_of(snapshot)
    settings = data_settings(run, data, given(**reading))
    [network] = check_features((features,) if features else (), run, (NETWORK,))
    pipeline = Text2Image.load(snapshot, text_encoder=text_encoder, device=device)
    dataset = load_data(pipeline, settings)
    check_audit(dataset, network)
    [space] = open_spaces([network], pipeline, dataset)
    info = pipeline.info
    result = run_audit(lambda texts, seeds: pipeline.generate(texts, seeds=seeds), dataset, space, prompts=prompts, limit=limit or LIMIT)
    click.echo(result.table())
    if run is not None:
        changed = ({"prompts": "own"} if prompts else {}) | result.changed
        path = result_path(run, "audit", info.nimg, changed)
        json_file, sheet_file = json_file or path, sheet_file or path.with_suffix(".png")
    head = {"snapshot": str(snapshot), "nimg": info.nimg, "resolution": info.resolution, "data_fingerprint": dataset.fingerprint}
    if json_file is not None:
        write_json(json_file, {**head, **result.to_json()})
        log.info(f"written: {json_file}")
    if sheet_file is not None:
        save_png(result.sheet(), sheet_file)
        log.info(f"written: {sheet_file}")
    if run is not None:
        write_scalars(run, result.scalars(), info.nimg)
