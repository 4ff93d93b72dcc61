"""Ways between pictures: their ends are the pictures themselves, and a step between them is small."""

from typing import Any

import pytest
import second_generator  # noqa: F401 (registers one without blocks)
import torch
from PIL import Image, ImageChops

from gan_t2i import registry
from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import to_uint8
from gan_t2i.runs import RunFolder
from gan_t2i.sampling.draw import latent
from gan_t2i.sampling.explore import blend, draw_point, interpolate, mix, slerp, variations
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


def with_generator(model: Text2Image, name: str, **params: Any) -> Text2Image:
    """Return the model with an untrained generator of that name in place of its own."""
    interface = {"resolution": 16, "text_width": model.encoder.width, "max_tokens": model.encoder.max_tokens}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = registry.build("generator", name, params, **interface)
    return Text2Image(generator.eval(), model.encoder, model.info)


def far(a: Image.Image, b: Image.Image) -> int:
    """Return the largest difference of two pictures."""
    return int((to_uint8([a]).int() - to_uint8([b])).abs().max())


@pytest.mark.parametrize("params", [{"name": "residual"}, {"name": "transformer"}, {"name": "style", "local_styles": True}], ids=str)
def test_a_mix_goes_from_the_shapes_of_one_prompt_to_another(model: Text2Image, params: dict[str, Any]) -> None:
    model = with_generator(model, **params)
    mixes = list(mix(model, A, B, seeds=(3, 7)))
    assert same(mixes[-1], model.generate(B, seeds=7)[0])
    assert far(mixes[-2], mixes[-1]) > 2
    assert len({picture.tobytes() for picture in mixes}) == len(mixes)
    # of one prompt and seed there is nothing to mix: in a batch of two kernels may round otherwise
    assert all(far(picture, mixes[-1]) <= 1 for picture in mix(model, B, B, seeds=(7, 7)))
    assert not model.generator.training
    assert same(model.generate(B, seeds=7)[0], mixes[-1])  # nothing stays behind


def test_the_features_of_all_blocks_but_the_last_are_those_of_the_first_prompt(model: Text2Image) -> None:
    model = with_generator(model, "residual")
    last = model.generator.finer[-1]
    inputs: list[torch.Tensor] = []
    with last.register_forward_pre_hook(lambda block, values: inputs.append(values[0])):
        model.generate(A)
        next(mix(model, A, B))
    torch.testing.assert_close(inputs[1], inputs[0].expand_as(inputs[1]))


def test_a_point_of_a_mixed_way_is_a_mix(model: Text2Image) -> None:
    mixes = list(mix(model, A, B, seeds=(3, 3)))
    points = [draw_point(model, A, to=B, t=t, mixed=True, seed=3) for t in (0, 0.01, 0.99, 1)]
    wanted = [model.generate(A, seeds=3)[0], mixes[0], mixes[-2], mixes[-1]]
    assert all(same(point, picture) for point, picture in zip(points, wanted, strict=True))
    assert not same(draw_point(model, A, to=B, t=0.5, mixed=True), draw_point(model, A, to=B, t=0.5))


def test_a_generator_without_blocks_is_not_mixed(model: Text2Image) -> None:
    other = with_generator(model, "second")
    with pytest.raises(UsageError, match="does not draw in blocks: its pictures cannot be mixed"):
        next(mix(other, A, B))


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
