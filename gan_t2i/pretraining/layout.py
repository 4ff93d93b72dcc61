"""Pretraining of the layout predictor: first a localizer learns where in real images each word shows, then the predictor learns to predict its
maps from the caption alone. N captions, L tokens, V vocabulary, P positions."""

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.config import Count, NonNegative, Positive
from gan_t2i.core.runtime import autocast, seeded_weights
from gan_t2i.data.batches.sampler import Batch
from gan_t2i.data.packing import PackedDataset
from gan_t2i.models.layout import LOCALIZER_SIDE, WordLocalizer
from gan_t2i.pretraining.loop import PretrainingConfig, RealPairs, add_noise, pretrain_or_load, train_on_pairs
from gan_t2i.text.encoder import SentenceEncoder

# To be raised where the networks or their pretraining change, so that cached ones are not taken for them.
VERSION = 2
NONE = -1  # index of a token that is not in the vocabulary


class LayoutTraining(PretrainingConfig):
    """Pretraining of a generator's layout predictor, and of the localizer that it learns from."""

    localizer_kimg: Positive = 60.0
    """Real images that the localizer learns from, in thousands."""
    kimg: Positive = 60.0
    """Captions that the predictor learns from, in thousands."""
    vocabulary_size: Count = 2000
    """Largest number of tokens that are located: the most frequent ones."""
    learning_rate: Positive = 5e-4
    noise: NonNegative = 0.3
    """Largest standard deviation of the noise on images; the range of a pixel is 2."""


def pretrained_layout(layout: nn.Module, config: LayoutTraining, pairs: RealPairs) -> None:
    """Give the predictor its weights, pretrained on first use."""
    encoder = pairs.encoder
    inputs = [VERSION, pairs.dataset.fingerprint, encoder.weights_hash, encoder.pipeline_hash, encoder.max_tokens]
    key = [*inputs, config.model_dump(), pairs.seed, pairs.precision]
    pretrain_or_load(layout, "layout", key, pairs, lambda: pretrain(layout, config, pairs))


def pretrain(layout: nn.Module, config: LayoutTraining, pairs: RealPairs) -> None:
    """Train a localizer on real images, then the predictor on what the localizer finds in them."""
    vocabulary = Vocabulary(pairs.dataset, pairs.encoder, config.vocabulary_size)
    with seeded_weights(pairs.seed):
        localizer = WordLocalizer(pairs.dataset.resolution, vocabulary.size).to(pairs.device).to(memory_format=torch.channels_last)

    def localizer_loss(batch: Batch, rng: torch.Generator) -> Tensor:
        targets = vocabulary.present(batch.captions).to(pairs.device)
        with autocast(pairs.device, pairs.precision):
            logits = localizer(add_noise(pairs.images(batch, LOCALIZER_SIDE), config.noise, rng))
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(targets)

    def layout_loss(batch: Batch, rng: torch.Generator) -> Tensor:
        text = pairs.cache.gather(batch.captions).to(pairs.device)
        tokens = vocabulary.tokens(batch.captions, text.mask.shape[1]).to(pairs.device)
        with torch.no_grad(), autocast(pairs.device, pairs.precision):
            maps = localizer.maps(pairs.images(batch, LOCALIZER_SIDE)).softmax(dim=2)
        targets = maps.take_along_dim(tokens.clamp(min=0)[..., None], dim=1)  # [N, L, P]
        with autocast(pairs.device, pairs.precision):
            predicted = layout(text)
        known = tokens != NONE
        return -((targets * predicted).sum(dim=2) * known).sum() / known.sum().clamp(min=1)

    # the streams of random numbers have kept their first names, so that weights are the same to the bit
    train_on_pairs(localizer, localizer_loss, pairs, config, name="localizer", stream="finder", kimg=config.localizer_kimg)
    train_on_pairs(layout, layout_loss, pairs, config, name="layout", stream="placer")


class Vocabulary:
    """The most frequent of the encoder's tokens in the training captions, at most `most` of them."""

    def __init__(self, dataset: PackedDataset, encoder: SentenceEncoder, most: int) -> None:
        used = dataset.train_caption_ids
        rows = dict(zip(used, encoder.token_ids([dataset.captions[index] for index in used]), strict=True))
        counts = Counter(token for row in rows.values() for token in row)
        kept = sorted(counts, key=lambda token: (-counts[token], token))[:most]
        index = {token: number for number, token in enumerate(kept)}
        self.size = len(kept)
        self._rows = {caption: [index.get(token, NONE) for token in row] for caption, row in rows.items()}

    def tokens(self, captions: Tensor, length: int) -> Tensor:
        """Return the tokens of captions (ids [N]) as indices into the vocabulary, [N, length], padded with `NONE`."""
        return torch.tensor([row + [NONE] * (length - len(row)) for row in (self._rows[index] for index in captions.tolist())])

    def present(self, captions: Tensor) -> Tensor:
        """Return 1 for each word of the vocabulary that stands in a caption (ids [N]) and 0 for the others, [N, V]."""
        present = torch.zeros(len(captions), self.size + 1)  # and a column for NONE
        for row, index in zip(present, captions.tolist(), strict=True):
            row[self._rows[index]] = 1
        return present[:, :-1]
