import pytest
import torch

from gan_t2i.models.attention_block import LocalStyleBlock, SelfAttentionBlock, WordAttentionBlock, heads_for, layout_bias
from gan_t2i.models.text_head import TextCondition


@pytest.mark.parametrize(("channels", "heads"), [(1, 1), (24, 1), (64, 2), (96, 3), (100, 2), (101, 1), (128, 4)])
def test_heads_always_divide_the_channels(channels, heads):
    assert heads_for(channels) == heads


@pytest.mark.parametrize("channels", [5, 100])
def test_blocks_add_what_they_attend_to(channels):
    torch.manual_seed(0)
    x = torch.randn(2, channels, 3, 4)
    text = TextCondition(torch.randn(2, 3, 8), torch.tensor([[True, True, False], [True, False, False]]), torch.randn(2, 8))
    for block, inputs in ((SelfAttentionBlock(channels), (x,)), (WordAttentionBlock(channels, 8), (x, text))):
        torch.nn.init.ones_(block.attention.to_output.bias)
        torch.nn.init.zeros_(block.attention.to_output.weight)
        torch.testing.assert_close(block(*inputs), x + 1)


def test_a_single_word_changes_every_position_alike():
    torch.manual_seed(0)
    block, x = WordAttentionBlock(4, 8), torch.randn(1, 4, 2, 2)
    change = block(x, TextCondition(torch.randn(1, 2, 8), torch.tensor([[False, True]]), torch.randn(1, 8))) - x
    torch.testing.assert_close(change, change[..., :1, :1].expand_as(change))


def test_a_word_changes_the_style_only_where_the_layout_puts_it():
    torch.manual_seed(0)
    block = LocalStyleBlock(4, 8, 16, layout=True)
    x, w, words = torch.zeros(1, 4, 8, 8), torch.zeros(1, 16), torch.randn(1, 2, 8)
    layout = torch.full((1, 2, 64), -20.0)
    layout[0, 0, 9] = layout[0, 1, 54] = 0.0  # rows 1 and 6, columns 1 and 6
    text = TextCondition(words, torch.tensor([[True, True]]), torch.randn(1, 8), layout)
    styles = block(x, w, text)[0].flatten(1).T  # [64, 16]
    for position, word in ((9, 0), (54, 1)):
        alone = block(x, w, TextCondition(words[:, [word]], torch.tensor([[True]]), torch.randn(1, 8)))[0, :, 0, 0]
        torch.testing.assert_close(styles[position], alone, atol=1e-3, rtol=0)
    assert (styles[9] - styles[54]).abs().max() > 0.01
    torch.testing.assert_close(styles[0], styles[63])  # elsewhere both words count alike


def test_layout_bias_is_the_log_ratio_to_a_uniform_distribution():
    layout = torch.full((1, 1, 64), 1 / 64).log()
    assert layout_bias(layout, 16).abs().max() < 1e-5
    layout[0, 0, 0] = 0.0
    bias = layout_bias(layout.log_softmax(dim=2), 8)[0, :, 0]
    assert bias[0] > 3 > 0 > bias[1] > -4
