"""The loss between images and what an autoencoder makes of them. N batch, C channels, R resolution.

It is L1 plus half the L1 of the differences between neighbouring pixels: edges count, and flat colours stay flat. Where asked for, a distance
in pretrained features is added (Johnson et al. 2016, arXiv 1603.08155; Zhang et al. 2018, arXiv 1801.03924): it prefers a sharp edge that is a
little off to a blurred one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.images import composite
from gan_t2i.models import features

EDGES = 0.5  # weight of the differences between neighbours
CROP = 64  # side in pixels of the squares that networks compare; of larger images they are random ones


def find_features() -> str:
    """Return the source of the pretrained features; raises `GanT2IError` where they cannot be had."""
    try:
        return features.find_weights().source
    except GanT2IError as error:
        raise GanT2IError(f"{error}; or set decoder.perceptual, decoder.adversarial and autoencoder.params.perceptual to 0") from error


class RebuildingLoss:
    """Compares images with rebuilt ones.

    Args:
        perceptual: weight of the distance in features; with 0 no pretrained network is needed.
        device: where the images are.

    Raises `GanT2IError` where the features cannot be had.
    """

    def __init__(self, perceptual: float, device: torch.device) -> None:
        self.perceptual = perceptual
        self.features = features.Features().to(device) if perceptual else None

    def __call__(self, rebuilt: Tensor, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return the loss, a scalar, of `rebuilt` [N, C, R, R] against `images` in [-1, 1]; `rng` chooses the square."""
        loss = pixel_loss(rebuilt, images)
        if self.features is None:
            return loss
        grey = torch.full((len(images), 3), 0.5, device=images.device)
        ours, theirs = random_square(composite(rebuilt, grey), composite(images, grey), rng)
        with torch.no_grad():
            wanted = self.features(theirs)
        distances = [_distance(a, b) for a, b in zip(self.features(ours), wanted, strict=True)]
        return loss + self.perceptual * torch.stack(distances).sum()


def random_square(ours: Tensor, theirs: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the same random square, of up to `CROP` pixels a side, of two batches of images [N, C, R, R].

    They are rolled first, so that every pixel is as likely to be seen: a plain crop hardly ever shows a corner, and corners came out dirty.
    """
    if ours.shape[-1] <= CROP:
        return ours, theirs
    shifts = torch.randint(ours.shape[-1], (2,), generator=rng).tolist()
    return ours.roll(shifts, (2, 3))[:, :, :CROP, :CROP], theirs.roll(shifts, (2, 3))[:, :, :CROP, :CROP]


def without_overshoot(rebuilt: Tensor, images: Tensor) -> Tensor:
    """Return `rebuilt` [N, C, R, R] with what lies beyond white, black, opaque or transparent taken away, where the image has that very end.

    It is clamped when it is shown, so a network may overshoot there, and flat grounds come out exact. Elsewhere it stays: clamped, it would
    have no gradient. It is not for a decoder that learns from G's latents: where it could not know better, things lost their thin parts.
    """
    beyond = (images >= 1) & (rebuilt > 1) | (images <= -1) & (rebuilt < -1)
    return torch.where(beyond, images, rebuilt)


def pixel_loss(rebuilt: Tensor, images: Tensor) -> Tensor:
    """Return the mean L1 between images [N, C, R, R] and rebuilt ones, plus that of the differences between neighbouring pixels.

    Images with alpha are compared as they are seen, over black and over white: there faults of colour and of alpha may add up.
    """
    error = rebuilt - images
    if error.shape[1] == 4:
        error = torch.cat([error[:, :3], error[:, :3] - error[:, 3:]], dim=1)
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + EDGES * edges


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared distance between feature vectors of length 1, of two maps [N, C, H, W]."""
    return (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(dim=1).mean()
