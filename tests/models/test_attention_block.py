import pytest
import torch

from gan_t2i.models.attention_block import SelfAttentionBlock, WordAttentionBlock, heads_for
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


def test_one_word_is_told_to_every_place_alike():
    torch.manual_seed(0)
    block, x = WordAttentionBlock(4, 8), torch.randn(1, 4, 2, 2)
    told = block(x, TextCondition(torch.randn(1, 2, 8), torch.tensor([[False, True]]), torch.randn(1, 8))) - x
    torch.testing.assert_close(told, told[..., :1, :1].expand_as(told))
