"""Explanations: each word's tokens are found, attention adds up, and the change is that of the picture without the word."""

import pytest
import torch
from PIL import ImageChops

from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import sheet
from gan_t2i.ops import attention
from gan_t2i.runs import RunFolder
from gan_t2i.sampling.explain import MOST_WORDS, attention_maps, explain, recorded_attention, token_spans
from gan_t2i.sampling.pipeline import Text2Image

PROMPT = "a red heart above a blue star"


@pytest.fixture(scope="module")
def pretrained() -> Text2Image:
    return Text2Image.load("pretrained:shapes64")


@pytest.fixture(scope="module")
def trained_model(trained: RunFolder) -> Text2Image:
    return Text2Image.load(trained.path)


def test_every_word_has_its_own_tokens(pretrained: Text2Image) -> None:
    encoder, words = pretrained.encoder, ["an", "untranslatable", "star"]
    spans = token_spans(encoder, words)
    [ids] = encoder.token_ids([" ".join(words)])
    assert spans[0][0] == 1  # after the start token
    assert [ids[start:stop] for start, stop in spans] == [encoder.token_ids([word])[0][1:-1] for word in words]


def test_the_change_is_that_of_the_picture_without_the_word(pretrained: Text2Image) -> None:
    found = explain(pretrained, PROMPT, seed=1)
    [picture, without] = pretrained.generate([PROMPT, "a heart above a blue star"], seeds=1)
    red = found.words[1]
    assert (found.prompt, red.word) == (PROMPT, "red")
    for ours, drawn in ((found.picture, picture), (red.without, without)):
        assert ImageChops.difference(ours, drawn).getbbox() is None
    by_word = {word.word: word for word in found.words}
    half = found.picture.height // 2
    assert by_word["red"].change[:half].mean() > by_word["red"].change[half:].mean()  # the heart is above
    assert by_word["red"].attention[:half].mean() > by_word["red"].attention[half:].mean()
    assert by_word["blue"].attention[:half].mean() < by_word["blue"].attention[half:].mean()


def test_attention_adds_up_over_the_tokens(trained_model: Text2Image) -> None:
    with recorded_attention(trained_model.generator) as maps:
        trained_model.generate(PROMPT)
    assert maps
    shares = attention_maps(maps, 32)
    assert shares.shape[1:] == (32, 32)
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(32, 32))
    assert not any(module._forward_pre_hooks for module in trained_model.generator.modules())


def test_recorded_weights_are_those_of_the_attention(trained_model: Text2Image, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.Tensor] = []
    attend = attention.attend

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
        if query.shape[2] != key.shape[2]:  # attention of places to words, not of words to words
            used.append(attend(query, key, torch.eye(key.shape[2]), *rest).mean(dim=1)[0].T)  # the values' identity returns the weights
        return attend(query, key, value, *rest)

    monkeypatch.setattr(attention, "attend", spy)
    with recorded_attention(trained_model.generator) as maps:
        trained_model.generate(PROMPT)
    assert used
    torch.testing.assert_close(maps, used)


def test_the_sheet_has_four_pictures_for_each_word(trained_model: Text2Image) -> None:
    rows, captions = explain(trained_model, "red star").rows()
    assert [len(row) for row in rows] == [4, 4]
    assert captions[0].startswith("red: changes ")
    assert sheet(rows, captions).width > 4 * trained_model.info.resolution


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("star", f"a prompt of 2 to {MOST_WORDS} words can be explained, and this one has 1"),
        ("star " * 25, f"a prompt of 2 to {MOST_WORDS} words can be explained, and this one has 25"),
        ("unfathomableness " * 20, "only a shorter one can be explained"),
        (" ", "prompt 1 is empty"),
    ],
)
def test_prompts_that_cannot_be_explained_are_refused(pretrained: Text2Image, prompt: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        explain(pretrained, prompt)
