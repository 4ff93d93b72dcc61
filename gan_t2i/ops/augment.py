"""How images reach the discriminator: composited and changed at random, real and generated ones alike.

The random changes are DiffAugment's (Zhao et al. 2020, arXiv 2006.10738). Everything is indexing and arithmetic, so it has the double
backward that gradient penalties need (grid_sample has none), and every image gets its own draw. N batch, C channels, H x W pixels; images are
in [-1, 1].
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from gan_t2i.core.config import StrictConfig
from gan_t2i.core.images import composite

Strength = Annotated[float, Field(ge=0, le=1)]

# columns of an image's draws: brightness, saturation, translation (down, right), cutout (y, x)
COLUMNS = (slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 6))


class AugmentConfig(StrictConfig):
    """Strength of each change that is made to images before the discriminator sees them; 0 switches a change off."""

    translation: Strength = 0.0
    """Largest shift as a fraction of the side; the nearest edge is repeated."""
    cutout: Strength = 0.0
    """Side of a grey square as a fraction of the image's side."""
    brightness: Strength = 0.0
    """Largest value added to all channels; the range of an image is 2."""
    saturation: Strength = 0.0
    """Colours are moved from or to grey by a factor in 1 - saturation .. 1 + saturation."""


def random_changes(n: int, config: AugmentConfig, rng: torch.Generator) -> Tensor:
    """Draws for n images from the CPU generator `rng` alone: uniform in [-1, 1), [N, 6]; columns of changes that are off are zero."""
    draws = torch.zeros(n, 6)
    for columns, strength in zip(COLUMNS, (config.brightness, config.saturation, config.translation, config.cutout), strict=True):
        if strength:
            draws[:, columns] = torch.rand(n, columns.stop - columns.start, generator=rng) * 2 - 1
    return draws


def discriminator_view(images: Tensor, config: AugmentConfig, changes: Tensor, background: Tensor | None) -> Tensor:
    """Turn images [N, C, H, W] into what D sees, [N, 3, H, W], or latents [N, K, S, S] into what it sees of those.

    Args:
        images: with 3 channels, or 4 with premultiplied alpha.
        config: strengths.
        changes: each image's draws [N, 6], from `random_changes`.
        background: a colour in [0, 1] for each image, [N, 3]. A real and a generated image share it, so that it gives neither away. None for
            latents.
    """
    return augment(images if background is None else composite(images, background), config, changes)


def augment(images: Tensor, config: AugmentConfig, changes: Tensor) -> Tensor:
    """Change images [N, 3, H, W] differentiably, each by its own row of `changes` [N, 6]."""
    brightness, saturation, shift, centre = (changes[:, columns] for columns in COLUMNS)
    if config.brightness:
        images = images + brightness[:, :, None, None] * config.brightness
    if config.saturation:
        grey = images.mean(dim=1, keepdim=True)
        images = grey + (images - grey) * (1 + saturation[:, :, None, None] * config.saturation)
    if config.translation:
        images = translate(images, shift * config.translation)
    if config.cutout:
        images = cut_out(images, (centre + 1) / 2, config.cutout)
    return images


def translate(images: Tensor, shift: Tensor) -> Tensor:
    """Move each image by `shift` [N, 2] (down, right) in fractions of its height and width, rounded to pixels; edges are repeated."""
    n, _, height, width = images.shape
    down, right = (shift[:, 0] * height).round().long(), (shift[:, 1] * width).round().long()
    rows = (torch.arange(height, device=images.device) - down[:, None]).clamp(0, height - 1)  # [N, H]
    columns = (torch.arange(width, device=images.device) - right[:, None]).clamp(0, width - 1)  # [N, W]
    items = torch.arange(n, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[items, rows[:, :, None], columns[:, None, :]]  # [N, H, W, 3]
    return moved.permute(0, 3, 1, 2)


def cut_out(images: Tensor, centre: Tensor, size: float) -> Tensor:
    """Grey out a square of side `size` (a fraction of the image's side) around `centre` [N, 2] (fractions, y first)."""
    _, _, height, width = images.shape
    y = (torch.arange(height, device=images.device) + 0.5) / height  # [H]
    x = (torch.arange(width, device=images.device) + 0.5) / width  # [W]
    inside_y = (y - centre[:, :1]).abs() < size / 2  # [N, H]
    inside_x = (x - centre[:, 1:]).abs() < size / 2  # [N, W]
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return images.masked_fill(inside, 0.0)
