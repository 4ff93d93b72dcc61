"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): a block stores only its inputs and recomputes the rest in the backward pass."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """Base of modules that can be checkpointed. They draw no random numbers and update no buffer, so recomputing them changes nothing."""

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
    """Context in which no block of `network` is checkpointed."""
    recomputed = [module for module in network.modules() if isinstance(module, Block) and module.recomputed]
    for module in recomputed:
        module.recomputed = False
    try:
        yield
    finally:
        for module in recomputed:
            module.recomputed = True
