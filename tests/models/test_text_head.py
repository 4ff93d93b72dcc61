import pytest
import torch

from gan_t2i.core.errors import UsageError
from gan_t2i.models.text_head import TextCondition, TextHead, TextHeadConfig, Whitening
from gan_t2i.text.batch import TextBatch

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


def test_words_see_each_other_and_the_order_counts(head, make_text):
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


@pytest.fixture
def whitening_head():
    torch.manual_seed(0)
    return TextHead(TextHeadConfig(width=16, layers=2, heads=2, whiten=True), text_width=E, max_tokens=MAX_TOKENS)


def alike_captions():
    """Captions whose vectors are far from zero, close together, and told apart by the last number alone."""
    drawn = torch.Generator().manual_seed(0)
    pooled = 5 + torch.randn(400, E, generator=drawn) * torch.tensor([1.0] * (E - 1) + [0.2])
    tokens = 3 + torch.randn(400, 4, E, generator=drawn)
    return TextBatch(tokens, torch.ones(400, 4, dtype=torch.bool), pooled)


def test_whitened_vectors_have_mean_zero_and_the_same_spread_in_every_direction():
    text = alike_captions()
    whitening = Whitening(E)
    whitening.fit(text.pooled)
    white = whitening(text.pooled)
    covariance = white.T @ white / len(white)
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(E), atol=1e-4, rtol=0)
    torch.testing.assert_close(covariance[:-1, :-1], torch.eye(E - 1), atol=0.05, rtol=0)
    # the direction of little variance is made longer, held back by the floor alone: 0.04 / (0.04 + 0.01 * 0.96)
    assert covariance[-1, -1] == pytest.approx(0.81, abs=0.03)


@pytest.mark.parametrize("captions", [1, 3])
def test_whitening_by_hardly_any_captions_stays_finite(captions):
    whitening = Whitening(E)
    whitening.fit(torch.randn(captions, E))
    assert whitening(torch.randn(5, E)).isfinite().all()


def test_a_head_whitens_by_the_captions_it_was_fitted_to_and_ignores_padding(whitening_head, pad):
    text = alike_captions()
    before = whitening_head(text).sentence
    whitening_head.fit(pad(text, 2))
    assert (whitening_head(text).sentence - before).abs().max() > 1e-2
    torch.testing.assert_close(whitening_head.norm_tokens.mean, text.tokens.flatten(0, 1).mean(dim=0))
    assert {"norm_tokens.matrix", "norm_pooled.mean"} <= set(whitening_head.state_dict())  # a snapshot has what it needs


def test_a_head_that_normalises_has_nothing_to_fit(head):
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.fit(alike_captions())
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())
