"""Ways between pictures: their ends are the pictures themselves, and a step between them is small."""

from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import to_uint8
from gan_t2i.runs import RunFolder
from gan_t2i.sampling.draw import latent
from gan_t2i.sampling.explore import blend, interpolate, slerp, variations
from gan_t2i.sampling.pipeline import Text2Image

A, B = "a red circle", "two large blue squares"


@pytest.fixture(scope="module")
def model(trained: RunFolder) -> Text2Image:
    return Text2Image.load(trained.path)


def same(a: Image.Image, b: Image.Image) -> bool:
    return ImageChops.difference(a, b).getbbox() is None


def steps(pictures: list[Image.Image]) -> tuple[float, float]:
    """Return the largest mean change from a picture to the next, and that from the first to the last."""
    pixels = to_uint8(pictures).float()
    changes = (pixels[1:] - pixels[:-1]).abs().mean(dim=(1, 2, 3))
    return changes.max().item(), (pixels[-1] - pixels[0]).abs().mean().item()


def test_the_ends_are_the_pictures_of_their_prompts_and_seeds(model: Text2Image) -> None:
    frames = list(interpolate(model, A, B, seeds=(3, 7), frames=9))
    assert len(frames) == 9
    assert same(frames[0], model.generate(A, seeds=3)[0])
    assert same(frames[-1], model.generate(B, seeds=7)[0])
    largest, whole = steps(frames)
    assert 0 < largest < whole
    assert all(same(frame, frames[0]) for frame in interpolate(model, A, A, seeds=(3, 3), frames=3))


def test_variations_go_from_the_picture_to_others(model: Text2Image) -> None:
    [picture] = model.generate(A, seeds=3)
    assert all(same(found, picture) for found in variations(model, A, seed=3, count=2, strength=0))
    near, far = (list(variations(model, A, seed=3, count=4, strength=strength)) for strength in (0.1, 1.0))
    assert not same(near[0], near[1])
    distances = [(to_uint8(found).float() - to_uint8([picture])).abs().mean().item() for found in (near, far)]
    assert distances[0] < distances[1]


def test_slerp_keeps_to_the_arc() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    torch.testing.assert_close(slerp(a, b, 0.5), torch.tensor([[1.0, 1.0]]) * 3 / 2**0.5)
    assert slerp(a, b, 0) is a
    assert slerp(a, b, 1) is b
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), torch.tensor([[3.0, 0.0]]))
    assert slerp(a, -a, 0.25).isfinite().all()


def test_a_blend_has_the_length_of_the_longer_prompt(model: Text2Image) -> None:
    short, long = (model.encoder.encode([text]) for text in (A, B))
    middle = blend(short, long, 0.5)
    assert middle.mask.all()
    assert middle.tokens.shape == long.tokens.shape
    torch.testing.assert_close(middle.tokens[:, 0], (short.tokens[:, 0] + long.tokens[:, 0]) / 2)
    torch.testing.assert_close(middle.tokens[:, -1], (short.tokens[:, -1] + long.tokens[:, -1]) / 2)
    assert blend(short, long, 0) is short


def test_a_variation_has_a_z_of_its_own(model: Text2Image) -> None:
    found = [latent(model.generator, 3), latent(model.generator, 3, 0), latent(model.generator, 3, 1), latent(model.generator, 4, 0)]
    assert len({tuple(z.flatten().tolist()) for z in found}) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: interpolate(model, A, " "), "prompt 2 is empty"),
        (lambda model: interpolate(model, A, B, frames=1), "1 frames: at least 2"),
        (lambda model: variations(model, A, strength=1.5), "strength 1.5: from 0, no change, to 1"),
        (lambda model: variations(model, A, count=1.5), "count 1.5 is not an integer"),
    ],
)
def test_what_cannot_be_drawn_is_refused(model: Text2Image, call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(call(model))
