"""The model that comes with the package draws right after installation, and says which it is and what it cannot know."""

from pathlib import Path

import numpy as np
import pytest

from gan_t2i.checkpoint import read_info
from gan_t2i.runs import PRETRAINED, RunFolder
from gan_t2i.sampling.pipeline import Text2Image, generate_image


@pytest.fixture(scope="module")
def model() -> Text2Image:
    return Text2Image.load("pretrained")


def test_it_is_small_and_says_what_it_is(said: list[str]) -> None:
    Text2Image.load("pretrained")
    assert PRETRAINED.stat().st_size < 12e6
    assert said[0].startswith("model: the pretrained shapes64 (style, 64 px, ")
    assert read_info(PRETRAINED).data_name == "shapes"


@pytest.mark.parametrize("with_runs", [False, True])
def test_it_is_the_default_whatever_lies_in_the_working_folder(
    model: Text2Image, trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_runs: bool
) -> None:
    monkeypatch.chdir(trained.path.parent.parent if with_runs else tmp_path)
    prompt = "a large red circle on a white background"
    expected = np.asarray(model.generate(prompt, seeds=3)[0])
    assert np.array_equal(np.asarray(Text2Image.load().generate(prompt, seeds=3)[0]), expected)
    assert np.array_equal(np.asarray(generate_image(prompt, seed=3)), expected)


def test_words_that_it_was_never_trained_with_get_a_warning(model: Text2Image, said: list[str]) -> None:
    pictures = model.generate(["a red circle on white", "A Dragon, in a castle"])
    assert len(pictures) == 2
    assert said == ["prompt 'A Dragon, in a castle': never seen in training: 'dragon', 'castle'; this model knows only simple shapes"]
