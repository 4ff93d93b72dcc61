"""The suite of pictures, over generators whose worth is known."""

import json
from collections.abc import Callable, Sequence

import pytest
import torch
from PIL import Image, ImageFilter

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.packing import PackedDataset
from gan_t2i.evaluation import pictures as pictures_suite
from gan_t2i.evaluation.features import FeatureSpace, open_space
from gan_t2i.evaluation.pictures import Figure, PicturesResult, run_pictures, standardize

RealOf = Callable[[str], Image.Image]


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    def none() -> None:
        raise AssertionError("no matcher is needed")

    return open_space("random", torch.device("cpu"), none)  # type: ignore[arg-type]


def run(many: PackedDataset, space: FeatureSpace, picture: Callable[[str, int], Image.Image], **settings: int) -> PicturesResult:
    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [picture(prompt, seed) for prompt in prompts for seed in seeds]

    return run_pictures(generate, many, [space], **settings)


def figures(result: PicturesResult) -> dict[str, Figure]:
    return {figure.name: figure for figure in result.figures}


def test_real_pictures_score_as_real_pictures_do(many: PackedDataset, space: FeatureSpace, real_of: RealOf) -> None:
    result = run(many, space, lambda prompt, seed: real_of(prompt))
    found = figures(result)
    assert list(found) == ["kid", "frechet", "precision", "recall", "density", "coverage", "own_first", "diversity"]
    for name in ("kid", "precision", "recall", "density", "coverage"):  # in other batches, features have other last bits
        assert found[name].generated == pytest.approx(found[name].real, abs=1e-5)
    assert found["coverage"].real is not None
    assert found["coverage"].real > 0.85
    assert (found["own_first"].generated, found["own_first"].real, found["own_first"].rebuilt) == (1, 1, None)
    assert (found["kid"].count, found["kid"].width, found["kid"].sha256) == (107, 256, space.sha256)
    assert found["diversity"].generated == pytest.approx(0, abs=1e-5)  # every seed of a prompt is the same picture
    assert (found["diversity"].count, found["diversity"].real) == (4 * 64, None)


def test_kid_orders_real_blurred_and_noise_and_a_collapse_shows(many: PackedDataset, space: FeatureSpace, real_of: RealOf) -> None:
    def noise(prompt: str, seed: int) -> Image.Image:
        pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        return Image.fromarray(pixels.numpy())

    real, blurred, noisy, collapsed = (
        figures(run(many, space, picture))
        for picture in (
            lambda prompt, seed: real_of(prompt),
            lambda prompt, seed: real_of(prompt).filter(ImageFilter.GaussianBlur(2)),
            noise,
            lambda prompt, seed: real_of("none"),
        )
    )
    kids = [values["kid"].generated or 0.0 for values in (real, blurred, noisy)]
    assert kids[0] + 5 * (real["kid"].std or 0) < kids[1] < kids[2]
    assert (noisy["diversity"].generated or 0) > 0.1
    for name in ("recall", "coverage"):
        assert (collapsed[name].generated or 0) < 0.2 < (real[name].generated or 0)


def test_too_few_for_a_covariance_and_too_few_held_out_are_said(many: PackedDataset, space: FeatureSpace, real_of: RealOf) -> None:
    result = run(many, space, lambda prompt, seed: real_of(prompt), limit=120, seeds=2)
    frechet = figures(result)["frechet"]
    assert (frechet.generated, frechet.real, frechet.why) == (None, None, "needs n > 2 d = 512")
    assert "needs n > 2 d = 512" in result.table()
    assert result.notes == ("heldout: left out; 100 pictures are needed, and there are 42",)
    assert result.changed == {"features": "random", "limit": 120, "seeds": 2}
    assert {figure.side for figure in result.figures} == {"train"}
    assert "Metrics/pictures/random/train_kid" in result.scalars()
    assert "Metrics/pictures/random/train_frechet" not in result.scalars()
    values = json.loads(json.dumps(result.to_json()))
    assert [one["name"] for one in values["figures"]] == list(figures(result))
    assert values["figures"][0]["drawn"] == figures(result)["kid"].generated  # the file format's own name


def test_held_out_pictures_have_their_own_figures_where_there_are_enough(
    many: PackedDataset, space: FeatureSpace, real_of: RealOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures_suite, "LEAST", 18)
    requests: list[tuple[str, int]] = []

    def picture(prompt: str, seed: int) -> Image.Image:
        requests.append((prompt, seed))
        return real_of(prompt)

    result = run(many, space, picture, seeds=2)
    assert {(f.side, f.count) for f in result.figures if f.name == "kid"} == {("train", 107), ("heldout", 21)}
    of_heldout = {many.captions[many.caption_ids[item][0]] for item in many.heldout.tolist()}
    assert of_heldout == {prompt for prompt, _ in requests[214:256]}
    assert not of_heldout & {prompt for prompt, _ in requests[:214]}
    # every caption has a latent of its own, and those of diversity have the same ones
    assert [seed for _, seed in requests[:214]] == list(range(214))
    assert [seed for _, seed in requests[256:]] == [0, 1] * 64


def test_standardizing_keeps_the_order_of_distances() -> None:
    real, generated = torch.randn(50, 4) * 30 + 100, torch.randn(50, 4) * 30 + 90
    x, y = standardize(real, generated)
    assert x.mean(dim=0).abs().max() < 1e-5
    assert x.square().mean() == pytest.approx(1, rel=1e-4)
    ratio = torch.cdist(x, y) / torch.cdist(real, generated)
    assert ratio.std() / ratio.mean() < 1e-3


def test_refusals(many: PackedDataset, space: FeatureSpace, real_of: RealOf) -> None:
    with pytest.raises(GanT2IError, match=r"100 are needed, and there are 60 \(of 214, with limit 60\)"):
        run(many, space, lambda prompt, seed: real_of(prompt), limit=60)
    with pytest.raises(ValueError, match="at least two"):
        run(many, space, lambda prompt, seed: real_of(prompt), seeds=1)


def test_own_first_is_the_share_of_pictures_nearest_to_their_own(many: PackedDataset, space: FeatureSpace, real_of: RealOf) -> None:
    captions = [many.captions[many.caption_ids[item][0]] for item in many.train.tolist()]
    other = dict(zip(captions, [*captions[1:], captions[0]], strict=True))
    swapped = figures(run(many, space, lambda prompt, seed: real_of(other[prompt])))["own_first"]
    assert swapped.generated == pytest.approx(0.01, abs=0.03)  # the other one is seldom among the hundred, and never its own
    half = figures(run(many, space, lambda prompt, seed: real_of(prompt if captions.index(prompt) % 2 else other[prompt])))["own_first"]
    assert half.generated == pytest.approx(0.5, abs=0.06)


def test_rebuilt_pictures_have_their_own_column(many: PackedDataset, space: FeatureSpace, real_of: RealOf) -> None:
    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [real_of(prompt) for prompt in prompts for _ in seeds]

    result = run_pictures(generate, many, [space], rebuild=lambda images: images)
    for figure in result.figures:
        assert figure.rebuilt == (None if figure.name == "diversity" else pytest.approx(figure.generated, abs=1e-9))
