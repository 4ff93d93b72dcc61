"""Pretraining of the captioner on real images, with noise on them, so that flaws of generated images do not mislead it later."""

import torch
from torch import Tensor

from gan_t2i.core.config import NonNegative, Positive
from gan_t2i.core.runtime import autocast, seeded_weights
from gan_t2i.core.weights import hash_state
from gan_t2i.data.batches.sampler import Batch
from gan_t2i.models.captioner import Captioner, CaptionerConfig
from gan_t2i.ops.resample import avg_pool_to
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
    """Largest standard deviation of the noise on its images, real or generated; the range of a pixel is 2, the variance of a latent 1."""


def build_captioner(config: CaptionerTraining, pairs: RealPairs) -> Captioner:
    """Build a captioner with the vocabulary of the training captions; its weights follow from the seed alone."""
    dataset = pairs.dataset
    captions = [dataset.captions[index] for item in dataset.train.tolist() for index in dataset.caption_ids[item]]
    vocabulary = count_vocabulary(captions, config.size.vocabulary_size)
    with seeded_weights(pairs.seed):
        autoencoder = pairs.autoencoder
        side, channels = dataset.resolution // autoencoder.factor, 3 if autoencoder.is_identity else autoencoder.latent_channels
        captioner = Captioner(config.size, resolution=side, vocabulary=vocabulary, channels=channels)
    return captioner.to(pairs.device).to(memory_format=torch.channels_last).requires_grad_(False)


def pretrained_captioner(config: CaptionerTraining, pairs: RealPairs) -> Captioner:
    """Return the captioner of a run, pretrained on first use."""
    captioner = build_captioner(config, pairs)
    key = [VERSION, pairs.dataset.fingerprint, config.model_dump(exclude={"weight"}), pairs.seed, pairs.precision]
    if not pairs.autoencoder.is_identity:
        key.append(hash_state(pairs.autoencoder))
    pretrain_or_load(captioner, "captioner", key, pairs, lambda: pretrain(captioner, config, pairs))
    return captioner


def pretrain(captioner: Captioner, config: CaptionerTraining, pairs: RealPairs) -> None:
    """Train the captioner on `config.kimg` real images, each with one of its captions."""

    def loss_of(batch: Batch, rng: torch.Generator) -> Tensor:
        tokens = captioner.tokenize([pairs.dataset.captions[index] for index in batch.captions.tolist()]).to(pairs.device)
        images = add_noise(avg_pool_to(pairs.latents(batch.images), captioner.side), config.noise, rng)
        with autocast(pairs.device, pairs.precision):
            return -captioner(images, tokens).mean()

    train_on_pairs(captioner, loss_of, pairs, config, name="captioner")
