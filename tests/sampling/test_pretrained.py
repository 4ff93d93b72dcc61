"""The model that comes with the package draws right after installation, and says which it is and what it cannot know."""

from pathlib import Path

import numpy as np
import pytest

from gan_t2i.checkpoint import read_info
from gan_t2i.core.errors import UsageError
from gan_t2i.data.builtin.shapes_grammar import known_words
from gan_t2i.runs import DEFAULT_MODEL, PRETRAINED, RunFolder, pretrained_model
from gan_t2i.sampling.pipeline import Text2Image, generate_image
from gan_t2i.text.weights import MINILM

MODELS = sorted(path.stem for path in PRETRAINED.glob("*.safetensors"))


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Text2Image:
    return Text2Image.load(f"pretrained:{request.param}")


@pytest.mark.parametrize("name", MODELS)
def test_it_is_small_and_says_what_it_is(name: str, said: list[str]) -> None:
    Text2Image.load(f"pretrained:{name}")
    path = pretrained_model(name)
    assert path.stat().st_size < 14e6
    assert said[0].startswith(f"model: the pretrained {name} (")
    card = read_info(path).card
    assert card is not None
    assert card.text == path.with_suffix(".md").read_text(encoding="utf-8")
    assert not card.unknown_words(card.example)


def test_the_shapes_model_knows_the_words_of_the_shapes() -> None:
    card = read_info(pretrained_model("shapes64")).card
    assert card is not None
    assert set(card.words) == known_words()


def test_its_text_encoder_may_lie_in_a_folder(said: list[str]) -> None:
    found = MINILM.find()
    if found is None:
        pytest.skip("the offline weights are not installed")
    Text2Image.load("pretrained:shapes64", text_encoder=str(found.path))
    assert f"from the local folder {found.path}" in said[-1]


def test_another_name_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no model 'cats' comes with gan_t2i: there are .*shapes64"):
        Text2Image.load("pretrained:cats")


@pytest.mark.parametrize("with_runs", [False, True])
def test_it_is_the_default_whatever_lies_in_the_working_folder(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_runs: bool
) -> None:
    model = Text2Image.load(f"pretrained:{DEFAULT_MODEL}")
    monkeypatch.chdir(trained.path.parent.parent if with_runs else tmp_path)
    prompt = "a large red circle on a white background"
    expected = np.asarray(model.generate(prompt, seeds=3)[0])
    assert np.array_equal(np.asarray(Text2Image.load().generate(prompt, seeds=3)[0]), expected)
    assert np.array_equal(np.asarray(generate_image(prompt, seed=3)), expected)


def test_words_that_it_was_never_trained_with_get_a_warning(model: Text2Image, said: list[str]) -> None:
    pictures = model.generate(["a red circle on white", "A Xylem, in a qrypt"])
    assert len(pictures) == 2
    assert "prompt 'A Xylem, in a qrypt': never seen in training: 'xylem'" in said[-1]


@pytest.mark.parametrize("word", ["q" * 10_000, " ".join(f"qrypt{number}" for number in range(1000))], ids=["long", "many"])
def test_a_warning_of_unknown_words_is_short(model: Text2Image, word: str) -> None:
    [warning, *_] = model.warnings(f"a {word}")
    assert warning.startswith(f"never seen in training: '{word[:6]}")
    assert warning.endswith("…")
    assert len(warning) < 300


def test_many_prompts_with_the_same_unknown_word_get_one_line(model: Text2Image, said: list[str]) -> None:
    del said[:]
    model.generate([f"a {colour} qrypt" for colour in ("red", "green", "blue")])
    assert said == ["prompt 'a red qrypt' and 2 more: never seen in training: 'qrypt'"]


def test_thousands_of_unknown_words_get_a_few_lines_and_a_count(model: Text2Image, said: list[str]) -> None:
    del said[:]
    model.warn(f"a qrypt{number}" for number in range(1000))
    assert said[19:] == ["prompt 'a qrypt19': never seen in training: 'qrypt19'", "980 more such sentences on the prompts are left out"]
