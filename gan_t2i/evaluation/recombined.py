"""New captions made of known words, for which a model cannot reproduce a training picture."""

from collections.abc import Sequence

import torch

from gan_t2i.data.packing import Indices, PackedDataset


def shuffled_captions(dataset: PackedDataset, items: Indices, rng: torch.Generator) -> list[str]:
    """The different first captions of the pictures at `items`, in random order."""
    texts = list(dict.fromkeys(dataset.captions[dataset.caption_ids[item][0]] for item in items.tolist()))
    return [texts[index] for index in torch.randperm(len(texts), generator=rng).tolist()]


def recombine(texts: Sequence[str], known: Sequence[str], limit: int) -> list[str]:
    """Up to `limit` captions, each the first half of the words of one of `texts` and the second half of another's, and none of them `known`."""
    taken = {text.casefold() for text in known}
    words = [text.split() for text in texts if len(text.split()) > 1]
    made: dict[str, None] = {}
    for shift in range(1, len(words)):
        for index, first in enumerate(words):
            second = words[(index + shift) % len(words)]
            text = " ".join([*first[: len(first) // 2], *second[len(second) // 2 :]])
            if text.casefold() not in taken:
                made[text] = None
            if len(made) >= limit:
                return list(made)
    return list(made)
