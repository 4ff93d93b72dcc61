"""Training data on the GPU: a step gathers images and captions there by their places, where the whole set fits.

P pictures, U captions, L tokens, E width of the encoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gan_t2i.core.phases import phase
from gan_t2i.data.batches.sampler import Sampler
from gan_t2i.text.batch import TextBatch
from gan_t2i.text.cache import TextCache

SHARE = 0.2  # of the free memory of a GPU that images may take, and captions again
CHUNK = 1024  # rows that are copied at a time


@dataclass(frozen=True)
class Resident:
    """The images and the captions that lie on the device; None for those that come with each step."""

    images: Tensor | None = None  # uint8 [P, C, R, R] as packed, or float16 latents
    text: TextBatch | None = None  # U captions; tokens [U, L, E] in float16, as the cache holds them

    def images_at(self, images: Tensor) -> Tensor:
        """Return images [n, C, R, R] as given, or those at the places int64 [n]."""
        return images if self.images is None else self.images[images]

    def text_at(self, text: TextBatch | Tensor) -> TextBatch:
        """Return captions as given, or those at the places int64 [M]."""
        if isinstance(text, TextBatch):
            return text
        assert self.text is not None  # the step was given places
        with phase("text"):
            return TextBatch(self.text.tokens[text].float(), self.text.mask[text], self.text.pooled[text])


def room(device: torch.device) -> int:
    """Return the bytes that images may take on a device, and captions again; none on a CPU, which reads them where they are."""
    return int(torch.cuda.mem_get_info(device)[0] * SHARE) if device.type == "cuda" else 0


def make_resident(sampler: Sampler, cache: TextCache, device: torch.device, most: int) -> Resident:
    """Copy the pictures, or latents, of a sampler and the embeddings of captions to the device, each where they take at most `most` bytes.

    A batch of that sampler then holds the places of its images, int64 [n], instead of them.
    """
    images, text = None, None
    pictures, gather = len(sampler.dataset), sampler.gather
    if gather([0]).nbytes * pictures <= most:
        images = _copied(pictures, device, gather)
        sampler.gather = torch.tensor
    if 2 * len(cache) * cache.length * cache.width <= most:
        text = TextBatch(
            _copied(len(cache), device, lambda ids: cache.gather(ids).padded(cache.length).tokens.half()),
            _copied(len(cache), device, lambda ids: cache.gather(ids).padded(cache.length).mask),
            cache.pooled(range(len(cache))).to(device),
        )
    return Resident(images, text)


def _copied(count: int, device: torch.device, gather: Callable[[Sequence[int]], Tensor]) -> Tensor:
    return torch.cat([gather(range(start, min(start + CHUNK, count))).to(device) for start in range(0, count, CHUNK)])
