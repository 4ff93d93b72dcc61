"""Generates pictures from prompts and seeds, for sampling and for the evaluations during training, so that both give the same bits."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from gan_t2i.core.runtime import seeded_rng, torch_defaults
from gan_t2i.models.base import Generator
from gan_t2i.sampling.captured import draw_picture
from gan_t2i.text.batch import TextBatch
from gan_t2i.text.encoder import SentenceEncoder


def draw(
    generator: Generator, encoder: SentenceEncoder, prompts: Iterable[str], seeds: Sequence[int], truncation_psi: float = 1.0
) -> Iterator[Image.Image]:
    """Yield RGB or RGBA pictures of every prompt with every seed, prompt by prompt, each with its seeds in order, as they are drawn.

    The generator must be in evaluation mode. A picture depends only on its prompt, its seed and `truncation_psi`: each is generated alone,
    because kernels round differently in another batch.
    """
    for prompt in prompts:
        text = encode_prompt(generator, encoder, prompt)
        for seed in seeds:
            yield draw_one(generator, latent(generator, seed), text, truncation_psi)


@torch_defaults()
def encode_prompt(generator: Generator, encoder: SentenceEncoder, prompt: str) -> TextBatch:
    """Return the encoded prompt, a batch of one, on the generator's device."""
    return encoder.encode([prompt]).to(next(generator.parameters()).device)


@torch_defaults()
def latent(generator: Generator, seed: int, variation: int | None = None) -> Tensor:
    """Return the z [1, Z] of a seed, or of one of its variations, on the CPU."""
    key = (seed, "z") if variation is None else (seed, "variation", variation)
    return torch.randn(1, generator.z_width, generator=seeded_rng(*key))


@torch_defaults()
@torch.no_grad()
def draw_one(generator: Generator, z: Tensor, text: TextBatch, truncation_psi: float = 1.0) -> Image.Image:
    """Return the picture of one z [1, Z] and one encoded prompt; the generator must be in evaluation mode."""
    device = next(generator.parameters()).device
    return draw_picture(generator, z.to(device), text.to(device), truncation_psi)
