"""The captioner's training, on real pairs alone, before a run begins; what it learned is kept in the cache for every run of the same data."""

import hashlib
import json
from collections.abc import Callable

import torch
from tqdm import tqdm

from gan_t2i.checkpoint import load_weights, read_tensors, write_tensors
from gan_t2i.data.packing import PackedDataset
from gan_t2i.errors import GanT2IError
from gan_t2i.files import cache_dir
from gan_t2i.models.captioner import Captioner
from gan_t2i.pictures import from_uint8, opaque_uint8
from gan_t2i.runtime import autocast, generator_for
from gan_t2i.text.tiny import count_vocabulary
from gan_t2i.training.config import CaptionerTraining
from gan_t2i.training.sampler import Sampler

# To be raised where the captioner or its training changes, so that those in caches are not taken for it.
VERSION = 2
COOLDOWN = 0.4  # share of its training over which the learning rate falls to 0


def build_captioner(config: CaptionerTraining, dataset: PackedDataset, seed: int, device: torch.device) -> Captioner:
    """A captioner of the training pictures' captions that was taught nothing yet; its weights are drawn from `seed` alone."""
    captions = [dataset.captions[index] for item in dataset.train.tolist() for index in dataset.caption_ids[item]]
    vocabulary = count_vocabulary(captions, config.size.vocabulary_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        captioner = Captioner(config.size, resolution=dataset.resolution, vocabulary=vocabulary)
    return captioner.to(device).to(memory_format=torch.channels_last).requires_grad_(False)


def taught_captioner(
    config: CaptionerTraining, dataset: PackedDataset, seed: int, device: torch.device, precision: str, notify: Callable[[str], None]
) -> Captioner:
    """The captioner of a run, taught here on first use."""
    captioner = build_captioner(config, dataset, seed, device)
    key = [VERSION, dataset.fingerprint, config.model_dump(exclude={"weight"}), seed, precision]
    path = cache_dir() / "captioners" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            load_weights(captioner, read_tensors(path)[0], str(path))
            notify(f"captioner: taught before, {path}")
            return captioner
        except GanT2IError as error:
            notify(f"the captioner is taught again: {error}")
    notify(f"captioner: learning from {len(dataset.train):,} real pictures what their captions say (once)")
    teach(captioner, config, dataset, seed, device, precision)
    write_tensors(path, captioner.state_dict(), {"type": "captioner"})
    return captioner


def teach(captioner: Captioner, config: CaptionerTraining, dataset: PackedDataset, seed: int, device: torch.device, precision: str) -> None:
    """Show `config.kimg` real pictures, each with one of its captions, and with noise, so that flaws of drawn ones do not mislead it."""
    captioner.requires_grad_(True)
    optimizer = torch.optim.Adam(captioner.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), fused=device.type != "mps")
    sampler, batch = Sampler(dataset, seed, ()), config.batch
    total = max(batch, round(config.kimg * 1000))
    with tqdm(total=total, desc="captioner", unit="img", unit_scale=True, disable=None) as bar:
        for nimg in range(0, total, batch):
            shown = sampler.batch(nimg, batch)
            tokens = captioner.tokens([dataset.captions[index] for index in shown.captions.tolist()]).to(device)
            pictures = captioner.averaged(from_uint8(opaque_uint8(shown.images).to(device)))
            generator = generator_for(seed, "captioner", nimg)
            strength = config.noise * torch.rand(batch, 1, 1, 1, generator=generator)
            pictures = pictures + (strength * torch.randn(pictures.shape, generator=generator)).to(device)
            with autocast(device, precision):
                loss = -captioner(pictures, tokens).mean()
            optimizer.param_groups[0]["lr"] = config.learning_rate * min(1.0, (nimg + batch) / 2000, (total - nimg) / (COOLDOWN * total))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            bar.update(batch)
            if nimg // batch % 50 == 0:
                bar.set_postfix_str(f"{loss.item():.3f} nats a token", refresh=False)
    captioner.requires_grad_(False)
