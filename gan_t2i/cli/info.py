"""``gan-t2i info``: describes a run or a snapshot, or lists the registered models."""

import json
from typing import TYPE_CHECKING, Any

import click

from gan_t2i.core.log import visible

if TYPE_CHECKING:
    from gan_t2i.checkpoint import ModelCard


@click.command("info")
@click.argument("model", metavar="[RUN_OR_SNAPSHOT]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str | None, as_json: bool) -> None:
    """Show a snapshot's generator, encoder, data and sizes; without an argument, list the registered models."""
    values = describe_registry() if model is None else describe_snapshot(model)
    if as_json:
        click.echo(json.dumps(values, ensure_ascii=False, indent=2))
    else:
        card = values.pop("card", None)
        width = max(map(len, values))
        for key, value in values.items():
            click.echo(f"{key:{width}}  {visible(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
        if card:
            click.echo("\n" + "\n".join(map(visible, card.splitlines())))


def describe_registry() -> dict[str, Any]:
    """Kind -> names of its registered classes, joined by commas."""
    import gan_t2i.models
    import gan_t2i.text  # noqa: F401 (both imports register their classes)
    from gan_t2i import registry

    return {kind: ", ".join(registry.names(kind)) for kind in ("autoencoder", "generator", "discriminator", "text_encoder")}


def describe_snapshot(model: str) -> dict[str, Any]:
    """The snapshot's metadata and sizes, as lines for people: name -> value."""
    from gan_t2i.checkpoint import load_snapshot
    from gan_t2i.runs import resolve_snapshot

    path = resolve_snapshot(model)
    generator, info = load_snapshot(path)
    encoder = info.encoder
    return {
        "snapshot": str(path),
        "format version": info.format_version,
        "generator": info.generator.name,
        "autoencoder": info.autoencoder.name if info.autoencoder is not None else "pixels",
        "resolution": f"{info.resolution} px, {'RGBA' if info.has_alpha else 'RGB'}",
        "parameters": f"{sum(p.numel() for p in generator.parameters()):,}",
        "file size": f"{path.stat().st_size / 1e6:.1f} MB",
        "images shown": f"{info.nimg:,}",
        "data": f"{info.data_name} (fingerprint {info.data_fingerprint[:12]})",
        "text encoder": f"{encoder.id}, revision {encoder.revision or 'none'}, weights sha256 {encoder.weights_hash[:12]}",
        "written by": ", ".join(f"{name} {version}" for name, version in info.versions.items()),
        "settings": info.generator.params,
        **({"knows": knows(info.card), "card": info.card.text} if info.card is not None else {}),
    }


def knows(card: "ModelCard") -> str:
    """Return how many words a published model knows, and its styles."""
    return f"{len(card.words):,} words" + f"; styles {', '.join(card.styles)}" * bool(card.styles)
