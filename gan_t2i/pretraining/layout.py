"""The lessons of a generator's layout: which words show where in real pictures, and then where captions put them."""

import logging
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_t2i.core.images import composite_on_grey_uint8, from_uint8
from gan_t2i.core.runtime import autocast
from gan_t2i.data.batches.sampler import Batch, Sampler
from gan_t2i.data.packing import PackedDataset
from gan_t2i.models.layout import LOCALIZER_SIDE, LayoutPredictor, WordLocalizer
from gan_t2i.ops.resample import avg_pool_to
from gan_t2i.pretraining.loop import add_noise, train_on_pairs, train_or_load
from gan_t2i.text.cache import TextCache
from gan_t2i.text.encoder import SentenceEncoder
from gan_t2i.training.config import TrainConfig

log = logging.getLogger(__name__)

# To be raised where the networks or their lessons change, so that those in caches are not taken for them.
VERSION = 2
NONE = -1  # the place in the vocabulary of a token that is not in it


def pretrain_layout(
    layout: LayoutPredictor,
    config: TrainConfig,
    dataset: PackedDataset,
    encoder: SentenceEncoder,
    cache: TextCache,
    device: torch.device,
) -> None:
    """Give the layout of a run what it is to know; the lessons are taken here on first use. `cache` holds the dataset's captions."""
    key = [VERSION, dataset.fingerprint, encoder.weights_hash, encoder.pipeline_hash, encoder.max_tokens]

    def lesson() -> None:
        log.info(f"layout: learning from {len(dataset.train):,} real pictures where captions put what they name (once)")
        teach(layout, config, dataset, encoder, cache, device)

    train_or_load(layout, "layout", [*key, config.grounding.model_dump(), config.seed, config.precision], lesson)


def teach(
    layout: LayoutPredictor, config: TrainConfig, dataset: PackedDataset, encoder: SentenceEncoder, cache: TextCache, device: torch.device
) -> None:
    """Show a localizer some thousand real pictures, each with one of its captions, and then the layout what the localizer finds in them."""
    settings = config.grounding
    vocabulary = Vocabulary(dataset, encoder, settings.vocabulary_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        localizer = WordLocalizer(dataset.resolution, vocabulary.size).to(device).to(memory_format=torch.channels_last)

    def pictures_of(shown: Batch) -> Tensor:
        return avg_pool_to(from_uint8(composite_on_grey_uint8(shown.images).to(device)), LOCALIZER_SIDE)

    def finding(shown: Batch, generator: torch.Generator) -> Tensor:
        named = vocabulary.named(shown.captions).to(device)
        with autocast(device, config.precision):
            logits = localizer(add_noise(pictures_of(shown), settings.noise, generator))
        return F.binary_cross_entropy_with_logits(logits, named, reduction="sum") / len(named)

    def placing(shown: Batch, generator: torch.Generator) -> Tensor:
        text = cache.gather(shown.captions).to(device)
        tokens = vocabulary.tokens(shown.captions, text.mask.shape[1]).to(device)
        with torch.no_grad(), autocast(device, config.precision):
            maps = localizer.maps(pictures_of(shown)).softmax(dim=2)
        found = maps.take_along_dim(tokens.clamp(min=0)[..., None], dim=1)  # [N, L, P]
        with autocast(device, config.precision):
            foretold = layout(text)
        known = tokens != NONE
        return -((found * foretold).sum(dim=2) * known).sum() / known.sum().clamp(min=1)

    sampler = Sampler(dataset, config.seed, ())
    lessons: list[tuple[nn.Module, str, float, Callable[[Batch, torch.Generator], Tensor]]] = [
        (localizer, "localizer", settings.localizer_kimg, finding),
        (layout, "layout", settings.kimg, placing),
    ]
    for network, name, kimg, loss_of in lessons:
        train_on_pairs(
            network,
            loss_of,
            sampler,
            name=name,
            seed=config.seed,
            kimg=kimg,
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            fused=device.type != "mps",
        )


class Vocabulary:
    """The encoder's tokens that stand in training captions, the most frequent `most` of them.

    size: how many these are, V.
    """

    def __init__(self, dataset: PackedDataset, encoder: SentenceEncoder, most: int) -> None:
        used = sorted({index for item in dataset.train.tolist() for index in dataset.caption_ids[item]})
        rows = dict(zip(used, encoder.token_ids([dataset.captions[index] for index in used]), strict=True))
        counts = Counter(token for row in rows.values() for token in row)
        kept = sorted(counts, key=lambda token: (-counts[token], token))[:most]
        place = {token: number for number, token in enumerate(kept)}
        self.size = len(kept)
        self._rows = {index: [place.get(token, NONE) for token in row] for index, row in rows.items()}

    def tokens(self, captions: Tensor, length: int) -> Tensor:
        """Captions' ids [N] -> their tokens' places in the vocabulary [N, length], `NONE` beyond their ends."""
        return torch.tensor([row + [NONE] * (length - len(row)) for row in (self._rows[index] for index in captions.tolist())])

    def named(self, captions: Tensor) -> Tensor:
        """Captions' ids [N] -> which words stand in them, [N, V] of 0 and 1."""
        named = torch.zeros(len(captions), self.size + 1)  # and one for NONE
        for row, index in zip(named, captions.tolist(), strict=True):
            row[self._rows[index]] = 1
        return named[:, :-1]
