"""Checkpointed blocks are recomputed in the backward pass: with the same numbers, and only where enabled."""

import pytest
import torch
from torch import Tensor, nn

from gan_t2i.ops.checkpointing import Block, enable_checkpointing, no_checkpointing


class Squares(Block):
    """A block that counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x: Tensor, scale: dict[str, Tensor]) -> tuple[Tensor, None]:
        self.calls += 1
        return self.layer(x).square() * scale["s"], None


def slope_of_slope(block: Block) -> list[Tensor]:
    """Return the gradients of a gradient penalty for the block's parameters and its input."""
    x = torch.linspace(-1, 1, 6).view(2, 3).requires_grad_()
    scale = torch.tensor(2.0, requires_grad=True)
    (slope,) = torch.autograd.grad(block(x, {"s": scale})[0].sum(), x, create_graph=True)
    return list(torch.autograd.grad(slope.square().sum(), [*block.parameters(), scale]))


@pytest.fixture
def block() -> Squares:
    torch.manual_seed(0)
    return Squares()


def test_a_double_backward_is_the_same_bit_for_bit(block: Squares) -> None:
    expected = slope_of_slope(block)
    assert block.calls == 1
    enable_checkpointing(nn.Sequential(nn.Identity(), block))
    found = slope_of_slope(block)
    assert block.calls > 2
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert any(gradient.any() for gradient in found)


def test_one_backward_computes_a_block_once_more(block: Squares) -> None:
    enable_checkpointing(block)
    block(torch.ones(1, 3), {"s": torch.ones(())})[0].sum().backward()
    assert block.calls == 2


def test_nothing_is_recomputed_without_gradients_or_without_checkpointing(block: Squares) -> None:
    enable_checkpointing(block)
    with torch.no_grad():
        block(torch.ones(1, 3), {"s": torch.ones(())})
    assert block.calls == 1
    with no_checkpointing(block):
        block(torch.ones(1, 3), {"s": torch.ones(())})[0].sum().backward()
    assert block.calls == 2
    assert block.recomputed
    enable_checkpointing(block, on=False)
    block(torch.ones(1, 3), {"s": torch.ones(())})[0].sum().backward()
    assert block.calls == 3
