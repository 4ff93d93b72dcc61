import pytest
import torch

from gan_t2i.core.errors import UsageError
from gan_t2i.models.text_head import TextCondition, TextHead, TextHeadConfig

E, MAX_TOKENS = 24, 8


@pytest.fixture
def head():
    torch.manual_seed(0)
    return TextHead(TextHeadConfig(width=16, layers=2, heads=2), text_width=E, max_tokens=MAX_TOKENS)


def test_shapes_and_mask_travel_together(head, make_text):
    text = make_text(3, 5)
    condition = head(text)
    assert condition.words.shape == (2, 5, 16)
    assert condition.sentence.shape == (2, 16)
    assert torch.equal(condition.mask, text.mask)


def test_padding_changes_no_word_and_no_sentence(head, make_text, pad):
    text = make_text(3, 5)
    plain, padded = head(text), head(pad(text, 3))
    torch.testing.assert_close(padded.sentence, plain.sentence, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded.words[:, :5][text.mask], plain.words[text.mask], atol=1e-5, rtol=1e-5)


def test_words_attend_to_each_other_and_their_order_matters(head, make_text):
    text = make_text(4)
    plain = head(text)
    changed = text.tokens.clone()
    changed[0, 3] += torch.randn(E, generator=torch.Generator().manual_seed(1))
    assert (head(type(text)(changed, text.mask, text.pooled)).words[0, 0] - plain.words[0, 0]).abs().max() > 1e-3
    swapped = head(type(text)(text.tokens[:, [1, 0, 2, 3]], text.mask, text.pooled))
    assert (swapped.sentence - plain.sentence).abs().max() > 1e-3


def test_a_caption_without_tokens_still_has_a_sentence(head, make_text):
    condition = head(make_text(0, 3))
    assert condition.sentence.isfinite().all()
    assert condition.words.isfinite().all()


def test_too_many_tokens_are_refused(head, make_text):
    with pytest.raises(ValueError, match="9 tokens given, at most 8 allowed"):
        head(make_text(9))


def test_selecting_captions_keeps_their_parts_together():
    condition = TextCondition(torch.arange(3.0).reshape(3, 1, 1), torch.tensor([[True], [False], [True]]), 10 * torch.arange(3.0)[:, None])
    chosen = condition[torch.tensor([2, 1])]
    assert chosen.words.flatten().tolist() == [2, 1]
    assert chosen.mask.flatten().tolist() == [True, False]
    assert chosen.sentence.flatten().tolist() == [20, 10]
    assert TextCondition(chosen.words.double(), chosen.mask, chosen.sentence.double()).float().words.dtype == torch.float32


@pytest.mark.parametrize(("changes", "message"), [({"heads": 3}, "width 256 must be a multiple of heads 3"), ({"heads": 0}, "heads = 0")])
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        TextHeadConfig.parse(changes)
