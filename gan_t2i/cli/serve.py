"""``gan-t2i serve``: a trained model behind OpenAI's images API."""

import importlib.util
from pathlib import Path

import click

from gan_t2i.cli.options import model_options

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


@click.command("serve")
@click.argument("model", metavar="[RUN_OR_SNAPSHOT]", default="auto")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; others than this machine need --api-key-file.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen at; 0 takes a free one.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File of API keys, one a line; requests must carry one of them.",
)
@model_options
def command(model: str, host: str, port: int, api_key_file: Path | None, text_encoder: str | None, device: str) -> None:
    """Serve a model over HTTP, with the images API of OpenAI.

    RUN_OR_SNAPSHOT is as for sample. Any client of OpenAI draws with it: its base URL is http://127.0.0.1:8000/v1. Ctrl-C stops, after the
    requests that are under way.
    """
    from gan_t2i.core.errors import GanT2IError, UsageError

    if any(importlib.util.find_spec(package) is None for package in _PACKAGES):
        raise GanT2IError('serving needs fastapi, uvicorn, prometheus-client and python-multipart: pip install "gan-t2i[serve]"')
    from gan_t2i.runs import model_name, resolve_snapshot
    from gan_t2i.sampling.pipeline import Text2Image
    from gan_t2i.serving.app import create_app
    from gan_t2i.serving.server import is_loopback, listen, read_keys, serve
    from gan_t2i.serving.settings import Limits

    keys = read_keys(api_key_file) if api_key_file else []
    if not keys and not is_loopback(host):
        raise UsageError(f"--host {host} can be reached from other machines: give --api-key-file FILE, with a key that requests must carry")
    snapshot = resolve_snapshot(model)
    limits = Limits()
    with listen(host, port) as listener:
        pipeline = Text2Image.load(snapshot, text_encoder=text_encoder, device=device)
        example = pipeline.info.card.example if pipeline.info.card else ""
        app = create_app(pipeline, model_name(snapshot), created=int(snapshot.stat().st_mtime), keys=keys, limits=limits, example=example)
        serve(app, listener, limits)
