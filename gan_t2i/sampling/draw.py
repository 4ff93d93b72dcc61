"""Generates pictures from prompts and seeds, for sampling and for the evaluations during training, so that both give the same bits."""

import hashlib
from collections.abc import Sequence

import torch
from PIL import Image

from gan_t2i.core.files import slug
from gan_t2i.core.images import to_pictures
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.models.base import Generator
from gan_t2i.text.encoder import SentenceEncoder


@torch.no_grad()
def draw(
    generator: Generator, encoder: SentenceEncoder, prompts: Sequence[str], seeds: Sequence[int], truncation_psi: float = 1.0
) -> list[Image.Image]:
    """RGB or RGBA pictures of every prompt with every seed, prompt by prompt, each with its seeds in order.

    The generator must be in evaluation mode. A picture depends only on its prompt, its seed and `truncation_psi`: each is generated alone,
    because kernels round differently in another batch.
    """
    device = next(generator.parameters()).device
    latents = [torch.randn(1, generator.z_width, generator=seeded_rng(seed, "z")).to(device) for seed in seeds]
    pictures: list[Image.Image] = []
    for prompt in prompts:
        text = encoder.encode([prompt]).to(device)
        for z in latents:
            pictures += to_pictures(generator(z, text, truncation_psi))
    return pictures


def file_names(prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """File names from prompt and seed, for every prompt with every seed, prompt by prompt; prompts that would share a name are numbered."""
    stems: list[str] = []
    for prompt in prompts:
        stem = slug(prompt)
        if stem == slug("") or len(slug(prompt, len(prompt))) > len(stem):  # nothing left, or cut: the digest keeps prompts apart
            stem += "-" + hashlib.blake2b(prompt.encode(), digest_size=3).hexdigest()
        number = sum(earlier == stem or earlier.startswith(f"{stem}.") for earlier in stems)
        stems.append(f"{stem}.{number + 1}" if number else stem)
    return [f"{stem}-seed{seed}.png" for stem in stems for seed in seeds]
