"""From prompts and seeds to pictures: what sampling and the evaluations during training share, so that both draw the same bits."""

from collections.abc import Sequence

import torch
from PIL import Image

from gan_t2i.core.images import to_pictures
from gan_t2i.core.runtime import seeded_rng
from gan_t2i.models.base import Generator
from gan_t2i.text.encoder import SentenceEncoder


@torch.no_grad()
def draw(
    generator: Generator, encoder: SentenceEncoder, prompts: Sequence[str], seeds: Sequence[int], truncation_psi: float = 1.0
) -> list[Image.Image]:
    """Every prompt with every seed by a generator in evaluation mode: RGB or RGBA pictures, prompt by prompt, each with its seeds in order.

    A picture depends on its prompt, its seed and `truncation_psi` alone: each is drawn by itself, because kernels round otherwise in
    another batch.
    """
    device = next(generator.parameters()).device
    latents = [torch.randn(1, generator.z_width, generator=seeded_rng(seed, "z")).to(device) for seed in seeds]
    pictures: list[Image.Image] = []
    for prompt in prompts:
        text = encoder.encode([prompt]).to(device)
        for z in latents:
            pictures += to_pictures(generator(z, text, truncation_psi))
    return pictures
