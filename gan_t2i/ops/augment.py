"""DiffAugment (Zhao et al. 2020, arXiv 2006.10738): the same kinds of change for real and drawn pictures before D sees them.

Everything is indexing and arithmetic, so it has the double backward that gradient penalties need (grid_sample has none), and every
picture gets its own draw. Images are [N, 3, H, W] in [-1, 1].
"""

from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor

from gan_t2i.core.config import StrictConfig

Strength = Annotated[float, Field(ge=0, le=1)]

# of the draws for a picture: brightness, saturation, translation (down, right), cutout (y, x)
COLUMNS = (slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 6))


class AugmentConfig(StrictConfig):
    """How strongly pictures are changed before the discriminator sees them; 0 switches a change off."""

    translation: Strength = 0.0
    """Largest shift as a fraction of the side; what comes in is the nearest edge."""
    cutout: Strength = 0.0
    """Side of a grey square as a fraction of the picture's side."""
    brightness: Strength = 0.0
    """Largest change added to all channels; the range of an image is 2."""
    saturation: Strength = 0.0
    """Colours are moved from or to grey by a factor in 1 - saturation .. 1 + saturation."""
    ramp_kimg: Annotated[float, Field(ge=0)] = 0.0
    """All of these rise linearly from nothing over this time; 0: they are there from the beginning."""

    def times(self, factor: float) -> Self:
        """The same changes, so much weaker."""
        names = ("translation", "cutout", "brightness", "saturation")
        return self.model_copy(update={name: getattr(self, name) * factor for name in names})


def draw_changes(n: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """What `augment` does to n pictures, from the CPU `generator` alone: uniform in [-1, 1), [N, 6], columns of what is off are zero."""
    draws = torch.zeros(n, 6)
    for columns, strength in zip(COLUMNS, (config.brightness, config.saturation, config.translation, config.cutout), strict=True):
        if strength:
            draws[:, columns] = torch.rand(n, columns.stop - columns.start, generator=generator) * 2 - 1
    return draws


def augment(images: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """`images` [N, 3, H, W] changed as `config` says, differentiably, each by its own row of what `draw_changes` gave."""
    draws = draws.to(images.device)
    brightness, saturation, shift, centre = (draws[:, columns] for columns in COLUMNS)
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
    """Move each picture by `shift` [N, 2] (down, right) as fractions of its height and width, rounded to pixels, edges repeated."""
    n, _, height, width = images.shape
    down, right = (shift[:, 0] * height).round().long(), (shift[:, 1] * width).round().long()
    rows = (torch.arange(height, device=images.device) - down[:, None]).clamp(0, height - 1)  # [N, H]
    columns = (torch.arange(width, device=images.device) - right[:, None]).clamp(0, width - 1)  # [N, W]
    items = torch.arange(n, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[items, rows[:, :, None], columns[:, None, :]]  # [N, H, W, 3]
    return moved.permute(0, 3, 1, 2)


def cut_out(images: Tensor, centre: Tensor, size: float) -> Tensor:
    """Grey out a square of side `size` (fraction of the picture's side) round `centre` [N, 2] (fractions, y first)."""
    _, _, height, width = images.shape
    y = (torch.arange(height, device=images.device) + 0.5) / height  # [H]
    x = (torch.arange(width, device=images.device) + 0.5) / width  # [W]
    inside_y = (y - centre[:, :1]).abs() < size / 2  # [N, H]
    inside_x = (x - centre[:, 1:]).abs() < size / 2  # [N, W]
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return images.masked_fill(inside, 0.0)
