"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): a block keeps its inputs alone; its backward pass computes the rest again."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A part of a network that can be told to keep nothing but its inputs for the backward pass. It draws no random numbers and moves no
    buffer, so computing it twice changes nothing."""

    recomputed = False

    def __call__(self, *inputs: Any) -> Any:
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False, preserve_rng_state=False)
        return super().__call__(*inputs)


def enable_checkpointing(network: nn.Module, on: bool = True) -> None:
    """Switch checkpointing on or off in each `Block` of `network`."""
    for module in network.modules():
        if isinstance(module, Block):
            module.recomputed = on


@contextlib.contextmanager
def no_checkpointing(network: nn.Module) -> Iterator[None]:
    """What `network` computes inside is kept, whatever was switched on."""
    recomputed = [module for module in network.modules() if isinstance(module, Block) and module.recomputed]
    for module in recomputed:
        module.recomputed = False
    try:
        yield
    finally:
        for module in recomputed:
            module.recomputed = True
