import math

import pytest
import torch
import torch.nn.functional as F

from gan_t2i.losses.adversarial import LOSSES
from gan_t2i.losses.inputs import negative_weights

EACH = pytest.mark.parametrize("name", sorted(LOSSES))


def with_one(mismatch):
    """The mismatch term of one other caption an item, as a function of (real [N], mismatched [N])."""
    return lambda real, other: mismatch(real, other[:, None], torch.ones(len(other), 1, dtype=torch.bool))


REAL, FAKE = torch.tensor([2.0, -0.5, 0.3]), torch.tensor([-1.0, 0.25, 1.5])


@pytest.mark.parametrize("logit", [-3.0, 0.0, 7.0])
def test_equal_logits_give_relativistic_log_2(logit):
    loss, logits = LOSSES["relativistic"], torch.full((4,), logit)
    for term in (loss.discriminator, loss.generator, with_one(loss.mismatch)):
        torch.testing.assert_close(term(logits, logits), torch.full((4,), math.log(2)))


def test_relativistic_by_hand():
    loss = LOSSES["relativistic"]
    torch.testing.assert_close(loss.discriminator(REAL, FAKE), torch.log1p(torch.exp(FAKE - REAL)))
    torch.testing.assert_close(loss.generator(REAL, FAKE), torch.log1p(torch.exp(REAL - FAKE)))


def test_hinge_by_hand():
    loss = LOSSES["hinge"]
    torch.testing.assert_close(loss.discriminator(REAL, FAKE), torch.tensor([0.0 + 0.0, 1.5 + 1.25, 0.7 + 2.5]))
    torch.testing.assert_close(loss.generator(REAL, FAKE), torch.tensor([1.0, -0.25, -1.5]))
    torch.testing.assert_close(with_one(loss.mismatch)(REAL, FAKE), torch.tensor([0.0, 1.25, 2.5]))


def test_non_saturating_is_cross_entropy_with_the_true_and_the_flipped_label():
    loss, one, zero = LOSSES["non_saturating"], torch.ones(3), torch.zeros(3)

    def entropy(logits, label):
        return F.binary_cross_entropy_with_logits(logits, label, reduction="none")

    torch.testing.assert_close(loss.discriminator(REAL, FAKE), entropy(REAL, one) + entropy(FAKE, zero))
    torch.testing.assert_close(loss.generator(REAL, FAKE), entropy(FAKE, one))
    torch.testing.assert_close(with_one(loss.mismatch)(REAL, FAKE), entropy(FAKE, zero))


@EACH
def test_positive_means_real_and_matching(name):
    loss, low, high = LOSSES[name], torch.tensor([-0.5]), torch.tensor([0.5])
    zero = torch.zeros(1)
    assert loss.discriminator(high, zero) < loss.discriminator(low, zero), "a higher real logit lowers D's loss"
    assert loss.discriminator(zero, high) > loss.discriminator(zero, low), "a higher fake logit raises D's loss"
    assert loss.generator(zero, high) < loss.generator(zero, low), "a higher fake logit lowers G's loss"
    assert with_one(loss.mismatch)(zero, high) > with_one(loss.mismatch)(zero, low), "a higher logit of a wrong caption raises D's loss"


@EACH
def test_losses_are_per_item_and_do_not_overflow(name):
    loss = LOSSES[name]
    for term in (loss.discriminator, loss.generator, with_one(loss.mismatch)):
        assert term(REAL, FAKE).shape == (3,)
        torch.testing.assert_close(term(REAL, FAKE)[1:2], term(REAL[1:2], FAKE[1:2]))
        assert term(torch.tensor([1e4]), torch.tensor([-1e4])).isfinite().all()
        assert term(torch.tensor([-1e4]), torch.tensor([1e4])).isfinite().all()


def test_own_captions_are_no_mismatch():
    weights = negative_weights(torch.tensor([[True], [False], [True], [True]]))
    torch.testing.assert_close(weights, torch.tensor([4 / 3, 0, 4 / 3, 4 / 3]))
    assert torch.equal(negative_weights(torch.tensor([[True]] * 3)), torch.ones(3))


def test_where_all_captions_are_equal_nothing_is_a_mismatch():
    assert torch.equal(negative_weights(torch.tensor([[False]] * 2)), torch.zeros(2))


OTHERS = torch.tensor([[0.5, -2.0, 9.0], [1.0, 0.0, 3.0]])
WRONG = torch.tensor([[True, True, False], [False, False, False]])


def test_several_negatives_are_contrasted_with_the_true_caption():
    """Cross-entropy of picking the picture's own caption among those that are wrong."""
    value = LOSSES["relativistic"].mismatch(REAL[:2], OTHERS, WRONG)
    expected = F.cross_entropy(torch.tensor([[2.0, 0.5, -2.0]]), torch.tensor([0]))
    torch.testing.assert_close(value, torch.stack([expected, torch.tensor(0.0)]))


@pytest.mark.parametrize(("name", "term"), [("hinge", lambda x: F.relu(1 + x)), ("non_saturating", F.softplus)])
def test_several_negatives_weigh_alike_elsewhere(name, term):
    value = LOSSES[name].mismatch(REAL[:2], OTHERS, WRONG)
    torch.testing.assert_close(value, torch.stack([(term(OTHERS[0, 0]) + term(OTHERS[0, 1])) / 2, torch.tensor(0.0)]))


@EACH
def test_a_masked_negative_has_no_gradient(name):
    others = OTHERS.clone().requires_grad_()
    LOSSES[name].mismatch(REAL[:2], others, WRONG).sum().backward()
    assert torch.equal(others.grad[~WRONG], torch.zeros(4))
    assert others.grad.isfinite().all()
    assert others.grad[0, 0] > 0
