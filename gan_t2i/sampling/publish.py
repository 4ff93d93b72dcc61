"""Publishing: a snapshot with a model card, which says to people and programs what the model knows, as a file or as a repository folder."""

import json
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gan_t2i.checkpoint import ModelCard, SnapshotInfo, load_snapshot, read_info, save_snapshot
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.files import atomic_folder, check_new
from gan_t2i.core.words import split_words
from gan_t2i.runs import REPOSITORY

if TYPE_CHECKING:
    from gan_t2i.data.packing import PackedDataset


def card_of(dataset: "PackedDataset", text: str, example: str = "") -> ModelCard:
    """Return the card of a model of `dataset`, with the words of its training captions and the values of its column `style`."""
    words = {word for caption in dataset.train_caption_ids for word in split_words(dataset.captions[caption])}
    styles = {str(style) for item in dataset.train.tolist() if (style := dataset.extras[item].get("style"))}
    return ModelCard(text, tuple(sorted(words)), tuple(sorted(styles)), example)


def card_text(card: ModelCard) -> str:
    """Return the text of a card for a folder of its own, in which links to places outside of it are words alone."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", card.text.strip())


def publish(snapshot: Path, card: ModelCard, destination: Path) -> None:
    """Write `snapshot`, rounded to bfloat16, with its card to `destination`; raises `GanT2IError` where a file cannot be read or written."""
    generator, info = load_snapshot(snapshot)
    save_snapshot(destination, generator, replace(info, card=card), torch.bfloat16)


def publish_repository(snapshot: Path, card: ModelCard, licence: str, folder: Path) -> None:
    """Write a new folder that can be a repository on the Hugging Face hub, and that `Text2Image.load` takes.

    Args:
        snapshot: it is published as by `publish`.
        card: its text becomes the README's.
        licence: of the model, as the hub calls it, such as "mit".
        folder: raises `UsageError` where it exists.
    """
    check_new(folder)
    readme, config, weights = REPOSITORY
    with atomic_folder(folder) as place:
        publish(snapshot, card, place / weights)
        info = read_info(place / weights)
        (place / config).write_text(json.dumps(_config(info), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        (place / readme).write_text(_readme(info, card, licence), encoding="utf-8")


def check_repository(snapshot: Path) -> None:
    """Raise `GanT2IError` where `snapshot` lies in a repository folder whose config is that of another model."""
    _, config, weights = REPOSITORY
    path = snapshot.with_name(config)
    if snapshot.name != weights or not path.is_file():
        return
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GanT2IError(f"{path} cannot be read: {error}") from error
    if values != _config(read_info(snapshot)):
        raise GanT2IError(f"{path} does not describe {snapshot}: take both from the same export")


def facts(info: SnapshotInfo) -> str:
    """Return a Markdown list of what a snapshot records about itself."""
    encoder = info.encoder
    revision = f", revision {encoder.revision}" * bool(encoder.revision)
    space = f"in the latents of autoencoder `{info.autoencoder.name}`" if info.autoencoder else "in pixels"
    return "\n".join(
        (
            f"- Pictures: {info.resolution} x {info.resolution} px, {'RGBA' if info.has_alpha else 'RGB'}",
            f"- Generator: `{info.generator.name}`, {space}, trained for {info.nimg:,} images",
            f"- Data: {info.data_name}, fingerprint `{info.data_fingerprint}`",
            f"- Text encoder: {encoder.id}{revision}, sha256 of its weights `{encoder.weights_hash}`",
        )
    )


def _config(info: SnapshotInfo) -> dict[str, Any]:
    """Return a snapshot's metadata as JSON values, without the card."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(replace(info, card=None))))
    del values["card"]
    return {"library_name": "gan_t2i", **values}


def _readme(info: SnapshotInfo, card: ModelCard, licence: str) -> str:
    """Return the README of a repository: the hub's header, the card, and how to draw."""
    prompt = card.example or "a prompt"
    return f"""---
license: {json.dumps(licence)}
library_name: gan_t2i
pipeline_tag: text-to-image
tags: [text-to-image, gan]
---
{card_text(card)}

## Use

```sh
gan-t2i sample FOLDER -p {shlex.quote(prompt)}
```

```python
from gan_t2i import Text2Image

Text2Image.load("FOLDER").generate({json.dumps(prompt, ensure_ascii=False)})[0].save("picture.png")
```

FOLDER is this repository on your disk. The text encoder is loaded from where it is installed or cached; its weights must have the hash below.
The model's words, {len(card.words):,} of its training captions, are in `model.safetensors`.

## Model

{facts(info)}
- Weights: bfloat16, in `model.safetensors`; no pickle
"""
