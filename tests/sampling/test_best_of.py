"""The best of several seeds: the judge's first is kept, and it is the picture of its seed."""

from collections.abc import Sequence

import pytest
from PIL import Image, ImageChops

from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import to_uint8
from gan_t2i.runs import RunFolder
from gan_t2i.sampling.best_of import best_of
from gan_t2i.sampling.pipeline import Text2Image

PROMPTS = ["a red circle", "blue square"]
SEEDS = [5, 0, 9, 2]


@pytest.fixture(scope="module")
def model(trained: RunFolder) -> Text2Image:
    return Text2Image.load(trained.path, device="cpu")


def brightness(pictures: Sequence[Image.Image], prompt: str) -> list[float]:
    """Like the blue square dark, and everything else bright."""
    sign = -1 if "blue" in prompt else 1
    return [sign * level.item() for level in to_uint8(pictures).float().mean(dim=(1, 2, 3))]


def test_the_judge_s_first_is_kept(model: Text2Image) -> None:
    found = list(best_of(model, PROMPTS, brightness, seeds=SEEDS, truncation_psi=0.9))
    assert [best.prompt for best in found] == PROMPTS
    for best in found:
        scores = brightness(model.generate(best.prompt, seeds=SEEDS, truncation_psi=0.9), best.prompt)
        assert best.score == max(scores) > min(scores)
        assert best.seed == SEEDS[scores.index(best.score)]
        [picture] = model.generate(best.prompt, seeds=best.seed, truncation_psi=0.9)
        assert ImageChops.difference(best.picture, picture).getbbox() is None


def test_the_first_of_equals_is_kept(model: Text2Image) -> None:
    [best] = best_of(model, "red", lambda pictures, prompt: [0.0, 1.0, 1.0, 0.5], seeds=SEEDS)
    assert (best.seed, best.score) == (SEEDS[1], 1.0)


def test_prompts_are_drawn_when_they_are_asked_for(model: Text2Image) -> None:
    judged: list[str] = []

    def judge(pictures: Sequence[Image.Image], prompt: str) -> list[float]:
        judged.append(prompt)
        return brightness(pictures, prompt)

    stream = best_of(model, PROMPTS, judge, seeds=range(2))
    assert judged == []
    next(stream)
    assert judged == PROMPTS[:1]


def test_what_of_several_prompts_is_left_out_is_said_once(model: Text2Image, said: list[str]) -> None:
    list(best_of(model, ["red circle " * 20, "blue circle " * 20], brightness, seeds=range(2)))
    assert [line.partition(": ")[0] for line in said] == ["prompt 'red circle red circle red circle red ci…' and 1 more"]


def test_refusals(model: Text2Image) -> None:
    for arguments, sentence in [
        (("", range(2)), "prompt 1 is empty"),
        (("red", []), "the best of none"),
        (("red", [0.5]), "seed 0.5 is not an integer"),
    ]:
        with pytest.raises(UsageError, match=sentence):
            best_of(model, arguments[0], brightness, seeds=arguments[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="zip"):
        list(best_of(model, "red", lambda pictures, prompt: [1.0], seeds=range(2)))
