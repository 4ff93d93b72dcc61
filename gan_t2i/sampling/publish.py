"""Publishing: a snapshot with a model card, which says to people and programs what the model knows."""

from dataclasses import replace
from pathlib import Path

import torch

from gan_t2i.checkpoint import ModelCard, load_snapshot, save_snapshot
from gan_t2i.core.words import split_words
from gan_t2i.data.packing import PackedDataset


def card_of(dataset: PackedDataset, text: str, example: str = "") -> ModelCard:
    """Return the card of a model of `dataset`, with the words of its training captions and the values of its column `style`."""
    words = {word for caption in dataset.train_caption_ids for word in split_words(dataset.captions[caption])}
    styles = {str(style) for item in dataset.train.tolist() if (style := dataset.extras[item].get("style"))}
    return ModelCard(text, tuple(sorted(words)), tuple(sorted(styles)), example)


def publish(snapshot: Path, card: ModelCard, destination: Path) -> None:
    """Write `snapshot`, rounded to bfloat16, with its card to `destination`; raises `GanT2IError` where a file cannot be read or written."""
    generator, info = load_snapshot(snapshot)
    save_snapshot(destination, generator, replace(info, card=card), torch.bfloat16)
