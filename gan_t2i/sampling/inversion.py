"""Finds styles with which a generator draws a given picture: GAN inversion in the space W+ (Abdal et al. 2019, arXiv 1904.03189).

N pictures, B blocks, W style width, C channels, R resolution, K x S x S the latents, or the pixels where a model has none.
"""

import inspect
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.images import from_uint8
from gan_t2i.core.runtime import torch_defaults
from gan_t2i.data.decode import BadImageError, load_image
from gan_t2i.data.records import LazyFile
from gan_t2i.data.settings import DataSettings
from gan_t2i.models.base import Generator
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.ops.checkpointing import Block
from gan_t2i.sampling.draw import latent
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.text.batch import TextBatch


def read_picture(source: Path | LazyFile, model: Text2Image, *, alpha: bool | None = None) -> Tensor:
    """Return a picture, with borders where it is not square, as the model draws: [1, C, R, R] in [-1, 1].

    `alpha` gives it 4 channels or 3; None takes the model's. Raises `GanT2IError` for a file that cannot be read.
    """
    settings = DataSettings(crop="pad", alpha=model.info.has_alpha if alpha is None else alpha)
    try:
        pixels = load_image(source, model.info.resolution, settings)
    except BadImageError as error:
        raise GanT2IError(f"{source.name} cannot be used: {error}") from error
    return from_uint8(torch.from_numpy(pixels)[None]).to(model.device)


def mapped_generator(model: Text2Image) -> Generator:
    """Return the generator whose styles are moved: in latents where the model has them. Raises `UsageError` where it has no styles."""
    generator = model.generator
    G = generator.G if isinstance(generator, LatentGenerator) else generator
    if not isinstance(getattr(G, "mapping", None), nn.Module):
        raise UsageError(f"the generator {model.info.generator.name!r} has no mapping network: it has no styles to draw your picture with")
    return G


class Inversion:
    """The search for offsets [1 + B, W] to the styles, with which the words of a prompt draw a picture as nearly as they can.

    L-BFGS takes one pass forward and back a step. Distances are mean squares in the space that G draws in. Between two calls the model is as it
    was, so that others may use it.

    Args:
        model: the model that draws; raises `UsageError` for one without a mapping network.
        picture: what is to be drawn, one of `read_picture`.
        seed: seed of the z that it is drawn with.
    """

    words: TextBatch
    """The prompt of `begin`, encoded."""
    best: Tensor | None = None
    """The offsets that came nearest so far; None before `begin`."""
    least: float
    """The distance that is left with them, plus their penalty."""

    @torch_defaults()
    @torch.no_grad()
    def __init__(self, model: Text2Image, picture: Tensor, seed: int = 0) -> None:
        self.model, self.G = model, mapped_generator(model)
        self.autoencoder = model.generator.autoencoder if isinstance(model.generator, LatentGenerator) else None
        self.z = latent(model.generator, seed).to(model.device)
        self.wanted = self.autoencoder.encode(picture) if self.autoencoder else picture

    @torch_defaults()
    @torch.no_grad()
    def draw(self, *prompts: str) -> Tensor:
        """Draw prompts with the best offsets, in the space that G draws in: [N, K, S, S]."""
        with nullcontext() if self.best is None else moved(self.G, self.best):
            return self.G(self.z.expand(len(prompts), -1), self._encode(*prompts))

    @torch_defaults()
    @torch.no_grad()
    def decode(self, drawn: Tensor) -> Tensor:
        """Return the pictures [N, C, R, R] of what G drew."""
        return self.autoencoder.decode(drawn) if self.autoencoder else drawn

    @torch_defaults()
    @torch.no_grad()
    def begin(self, prompt: str, penalty: float) -> None:
        """Begin the search for the offsets with the words of `prompt`.

        The sum over the offsets of their mean squares costs `penalty` of the distance at the beginning. Without any, offsets grow until other
        words no longer do what they say.
        """
        self.best, self.least = None, math.inf
        self.weight = penalty * (self.draw(prompt) - self.wanted).square().mean()
        self.words = self._encode(prompt)
        w = self.G.mapping(self.z, self.G.text_head(self.words).sentence)
        self.best = w.new_zeros(1 + len(styled_blocks(self.G)), w.shape[1])
        self._start()

    @torch_defaults()
    def step(self) -> None:
        """Take one step towards the picture; a step that left the finite numbers is taken back to the best offsets."""
        if not math.isfinite(self.lbfgs.step(self._measure)):
            self._start()

    def _start(self) -> None:
        """Let the next step begin at the best offsets, without a memory of earlier ones."""
        assert self.best is not None
        self.offsets = self.best.clone().requires_grad_()
        self.lbfgs = torch.optim.LBFGS([self.offsets], max_iter=1, history_size=20, tolerance_grad=0, tolerance_change=0)

    def _measure(self) -> float:
        self.lbfgs.zero_grad()
        with moved(self.G, self.offsets):
            distance = (self.G(self.z, self.words) - self.wanted).square().mean()
        loss = distance + self.weight * self.offsets.square().mean(dim=1).sum()
        loss.backward()
        if loss.item() < self.least:
            self.least, self.best = loss.item(), self.offsets.detach().clone()
        return loss.item()

    def _encode(self, *prompts: str) -> TextBatch:
        return self.model.encoder.encode(prompts).to(self.model.device)


def styled_blocks(G: Generator) -> list[nn.Module]:
    """Return the B blocks of `G` that get a style, as the argument `w`, in the order in which they draw."""
    return [module for module in G.modules() if isinstance(module, Block) and "w" in inspect.signature(module.forward).parameters]


@contextmanager
def moved(G: Generator, offsets: Tensor) -> Iterator[None]:
    """Context in which `offsets` [1 + B, W] are added to the styles of `G`: the first to what the mapping network gives, each other one to what
    a block gets. Where a block hands its style on to the next one, the offset stays added."""
    first, *others = offsets
    with ExitStack() as hooks:
        hooks.enter_context(G.mapping.register_forward_hook(lambda module, inputs, w: w + first))
        for block, offset in zip(styled_blocks(G), others, strict=True):
            hooks.enter_context(block.register_forward_pre_hook(partial(_move, offset=offset)))
        yield


def _move(block: nn.Module, inputs: tuple[Any, ...], offset: Tensor) -> tuple[Any, ...]:
    """Return the inputs of `block` with the offset [W] added to its style, [N, W] or [N, W, h, w]."""
    at = [*inspect.signature(block.forward).parameters].index("w")
    w = inputs[at]
    return (*inputs[:at], w + offset.view(-1, *[1] * (w.ndim - 2)), *inputs[at + 1 :])
