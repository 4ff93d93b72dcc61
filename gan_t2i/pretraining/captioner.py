"""The captioner's lesson: what captions say of real pictures."""

import logging

import torch
from torch import Tensor

from gan_t2i.core.images import composite_on_grey_uint8, from_uint8
from gan_t2i.core.runtime import autocast
from gan_t2i.data.batches.sampler import Batch, Sampler
from gan_t2i.data.packing import PackedDataset
from gan_t2i.models.captioner import Captioner
from gan_t2i.ops.resample import avg_pool_to
from gan_t2i.pretraining.loop import add_noise, train_on_pairs, train_or_load
from gan_t2i.text.tiny import count_vocabulary
from gan_t2i.training.config import CaptionerTraining

log = logging.getLogger(__name__)

# To be raised where the captioner or its training changes, so that those in caches are not taken for it.
VERSION = 2


def build_captioner(config: CaptionerTraining, dataset: PackedDataset, seed: int, device: torch.device) -> Captioner:
    """A captioner of the training pictures' captions that was taught nothing yet; its weights are drawn from `seed` alone."""
    captions = [dataset.captions[index] for item in dataset.train.tolist() for index in dataset.caption_ids[item]]
    vocabulary = count_vocabulary(captions, config.size.vocabulary_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        captioner = Captioner(config.size, resolution=dataset.resolution, vocabulary=vocabulary)
    return captioner.to(device).to(memory_format=torch.channels_last).requires_grad_(False)


def pretrained_captioner(config: CaptionerTraining, dataset: PackedDataset, seed: int, device: torch.device, precision: str) -> Captioner:
    """The captioner of a run, taught here on first use."""
    captioner = build_captioner(config, dataset, seed, device)
    key = [VERSION, dataset.fingerprint, config.model_dump(exclude={"weight"}), seed, precision]

    def lesson() -> None:
        log.info(f"captioner: learning from {len(dataset.train):,} real pictures what their captions say (once)")
        teach(captioner, config, dataset, seed, device, precision)

    train_or_load(captioner, "captioner", key, lesson)
    return captioner


def teach(captioner: Captioner, config: CaptionerTraining, dataset: PackedDataset, seed: int, device: torch.device, precision: str) -> None:
    """Show `config.kimg` real pictures, each with one of its captions, and with noise, so that flaws of drawn ones do not mislead it."""

    def loss_of(shown: Batch, generator: torch.Generator) -> Tensor:
        tokens = captioner.tokens([dataset.captions[index] for index in shown.captions.tolist()]).to(device)
        pictures = avg_pool_to(from_uint8(composite_on_grey_uint8(shown.images).to(device)), captioner.side)
        with autocast(device, precision):
            return -captioner(add_noise(pictures, config.noise, generator), tokens).mean()

    train_on_pairs(
        captioner,
        loss_of,
        Sampler(dataset, seed, ()),
        name="captioner",
        seed=seed,
        kimg=config.kimg,
        batch=config.batch,
        learning_rate=config.learning_rate,
        fused=device.type != "mps",
    )
