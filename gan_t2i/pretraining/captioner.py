"""Pretraining of the captioner on real images, with noise on them, so that flaws of generated images do not mislead it later."""

import torch
from torch import Tensor

from gan_t2i.core.config import NonNegative, Positive
from gan_t2i.core.runtime import autocast, seeded_weights
from gan_t2i.data.batches.sampler import Batch
from gan_t2i.models.captioner import Captioner, CaptionerConfig
from gan_t2i.pretraining.loop import PretrainingConfig, RealPairs, add_noise, pretrain_or_load, train_on_pairs
from gan_t2i.text.tiny import count_vocabulary

# To be raised where the captioner or its training changes, so that cached ones are not taken for it.
VERSION = 2


class CaptionerTraining(PretrainingConfig):
    """Size and pretraining of the captioner."""

    size: CaptionerConfig = CaptionerConfig()
    kimg: Positive = 120.0
    learning_rate: Positive = 1e-3
    noise: NonNegative = 1.0
    """Largest standard deviation of the noise on its images, real or generated; the range of a pixel is 2."""


def build_captioner(config: CaptionerTraining, pairs: RealPairs) -> Captioner:
    """Build a captioner with the vocabulary of the training captions; its weights follow from the seed alone."""
    dataset = pairs.dataset
    captions = [dataset.captions[index] for item in dataset.train.tolist() for index in dataset.caption_ids[item]]
    vocabulary = count_vocabulary(captions, config.size.vocabulary_size)
    with seeded_weights(pairs.seed):
        captioner = Captioner(config.size, resolution=dataset.resolution, vocabulary=vocabulary)
    return captioner.to(pairs.device).to(memory_format=torch.channels_last).requires_grad_(False)


def pretrained_captioner(config: CaptionerTraining, pairs: RealPairs) -> Captioner:
    """Return the captioner of a run, pretrained on first use."""
    captioner = build_captioner(config, pairs)
    key = [VERSION, pairs.dataset.fingerprint, config.model_dump(exclude={"weight"}), pairs.seed, pairs.precision]
    pretrain_or_load(captioner, "captioner", key, pairs, lambda: pretrain(captioner, config, pairs))
    return captioner


def pretrain(captioner: Captioner, config: CaptionerTraining, pairs: RealPairs) -> None:
    """Train the captioner on `config.kimg` real images, each with one of its captions."""

    def loss_of(batch: Batch, rng: torch.Generator) -> Tensor:
        tokens = captioner.tokenize([pairs.dataset.captions[index] for index in batch.captions.tolist()]).to(pairs.device)
        images = add_noise(pairs.images(batch, captioner.side), config.noise, rng)
        with autocast(pairs.device, pairs.precision):
            return -captioner(images, tokens).mean()

    train_on_pairs(captioner, loss_of, pairs, config, name="captioner")
