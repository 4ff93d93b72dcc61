import math

import pytest
import torch

from gan_t2i.ops.attention import MultiHeadAttention, attend


def draws(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def attend_in_loops(query, key, value, mask):
    """Compute softmax(QK^T / sqrt(d_k)) V one number at a time: query [Q, d_k], key [L, d_k], value [L, d_v], mask [Q, L]."""
    result = torch.zeros(len(query), value.shape[1], dtype=query.dtype)
    for q in range(len(query)):
        weights = []
        for k in range(len(key)):
            score = sum(float(query[q, i]) * float(key[k, i]) for i in range(query.shape[1])) / math.sqrt(query.shape[1])
            weights.append(math.exp(score) if mask[q, k] else 0.0)
        for k, weight in enumerate(weights):
            result[q] += weight / sum(weights) * value[k]
    return result


@pytest.mark.parametrize("mask", [torch.ones(3, 4, dtype=torch.bool), torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()])
def test_attend_is_the_formula_written_out(mask):
    query, key, value = draws(3, 5), draws(4, 5, seed=1), draws(4, 2, seed=2)
    torch.testing.assert_close(attend(query, key, value, mask), attend_in_loops(query, key, value, mask))


def test_attend_without_a_mask_is_attend_with_every_key_allowed():
    query, key, value = draws(2, 3, 4), draws(2, 5, 4, seed=1), draws(2, 5, 4, seed=2)
    torch.testing.assert_close(attend(query, key, value), attend(query, key, value, torch.ones(2, 3, 5, dtype=torch.bool)))


def test_every_head_attends_on_its_own_slice_of_the_channels():
    attention = MultiHeadAttention(6, heads=2, context_width=3).double().requires_grad_(False)
    x, context = draws(1, 2, 6), draws(1, 4, 3, seed=1)
    mask = torch.tensor([[True, True, False, True]])
    query, key, value = x[0] @ attention.to_query.weight.T, context[0] @ attention.to_key.weight.T, context[0] @ attention.to_value.weight.T
    heads = [attend_in_loops(query[:, s], key[:, s], value[:, s], mask.expand(2, 4)) for s in (slice(0, 3), slice(3, 6))]
    wanted = torch.cat(heads, dim=1) @ attention.to_output.weight.T + attention.to_output.bias
    torch.testing.assert_close(attention(x, context, mask)[0], wanted)


def test_what_is_masked_has_no_influence_and_no_gradient():
    attention = MultiHeadAttention(4, heads=1).double()
    mask = torch.tensor([[True, True, False]])
    context = draws(1, 3, 4, seed=1).requires_grad_()
    attended = attention(draws(1, 2, 4), context, mask)
    (gradient,) = torch.autograd.grad(attended.square().sum(), context)
    assert (gradient[0, 2] == 0).all()
    assert (gradient[0, :2] != 0).all()
    other = context.detach().clone()
    other[0, 2] = 1e4
    torch.testing.assert_close(attention(draws(1, 2, 4), other, mask), attended)


def test_attention_has_the_double_backward_that_penalties_need():
    mask = torch.tensor([[True, False, True], [True, True, True]])
    inputs = [draws(2, 2, seed=seed).requires_grad_() for seed in (0, 1)]
    key, value = (draws(3, 2, seed=seed).requires_grad_() for seed in (2, 3))

    def attended(query, key, value):
        return attend(query, key, value, mask)

    assert torch.autograd.gradcheck(attended, (inputs[0], key, value))
    assert torch.autograd.gradgradcheck(attended, (inputs[0], key, value))
    attention = MultiHeadAttention(2, heads=1).double()
    assert torch.autograd.gradgradcheck(attention, (inputs[0][None],))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="attention width 6 must be a multiple of heads 4"):
        MultiHeadAttention(6, heads=4)


def test_each_query_may_have_its_own_mask() -> None:
    """Under a causal mask, a token's output equals that of the last token of a sequence that ends with it."""
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2)
    x = torch.randn(3, 5, 8)
    before = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    causal = attention(x, mask=before)
    for length in range(1, 6):
        torch.testing.assert_close(causal[:, length - 1], attention(x[:, :length])[:, -1])
    assert not torch.allclose(causal, attention(x))
