"""Generates pictures from prompts and seeds, for sampling and for the evaluations during training, so that both give the same bits."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from PIL import Image

from gan_t2i.core.images import to_pictures
from gan_t2i.core.runtime import seeded_rng, torch_defaults
from gan_t2i.models.base import Generator
from gan_t2i.text.encoder import SentenceEncoder


def draw(
    generator: Generator, encoder: SentenceEncoder, prompts: Iterable[str], seeds: Sequence[int], truncation_psi: float = 1.0
) -> Iterator[Image.Image]:
    """Yield RGB or RGBA pictures of every prompt with every seed, prompt by prompt, each with its seeds in order, as they are drawn.

    The generator must be in evaluation mode. A picture depends only on its prompt, its seed and `truncation_psi`: each is generated alone,
    because kernels round differently in another batch.
    """
    device = next(generator.parameters()).device
    for prompt in prompts:
        with torch_defaults():
            text = encoder.encode([prompt]).to(device)
        for seed in seeds:
            # not around the yield: between two pictures, torch is the caller's
            with torch_defaults(), torch.no_grad():
                z = torch.randn(1, generator.z_width, generator=seeded_rng(seed, "z")).to(device)
                [picture] = to_pictures(generator(z, text, truncation_psi))
            yield picture
