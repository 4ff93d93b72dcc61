"""Which word of a prompt moves which part of its picture: the change where the word is left out, and the attention that it gets.

Attention alone is no explanation (Jain and Wallace 2019, arXiv 1902.10186): a word may be looked at and change nothing. So both are shown.
R picture side, L tokens, W words.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gan_t2i.core.arguments import as_integer, as_number, as_prompts
from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import composite_on_grey, to_uint8
from gan_t2i.models.base import Generator
from gan_t2i.ops.attention import MultiHeadAttention
from gan_t2i.sampling.draw import draw
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.text.encoder import SentenceEncoder

MOST_WORDS = 24


@dataclass(frozen=True)
class WordEffect:
    """The effect of one word on a picture."""

    word: str
    without: Image.Image
    """The picture of the same seed for the prompt without the word."""
    change: Tensor
    """How far each pixel differs from that picture, [R, R] in [0, 1], a mean over the colours."""
    attention: Tensor
    """Share of the generator's attention that each place gives the word, [R, R] in [0, 1]: a mean over layers and heads."""


@dataclass(frozen=True)
class Explanation:
    """A picture, and the effect of each word of its prompt."""

    prompt: str
    picture: Image.Image
    words: tuple[WordEffect, ...]

    def rows(self) -> tuple[list[list[Image.Image]], list[str]]:
        """Return pictures and captions for `core.images.sheet`: for each word the picture, the picture without it, its change and its
        attention, each as light on the darkened picture, and brightest where it is largest for any word."""
        brightest = {name: max(getattr(effect, name).max().item() for effect in self.words) for name in ("change", "attention")}
        rows = []
        for effect in self.words:
            lights = [_lit(self.picture, getattr(effect, name) / (largest or 1.0)) for name, largest in brightest.items()]
            rows.append([composite_on_grey(picture) for picture in (self.picture, effect.without, *lights)])
        return rows, [f"{effect.word}: changes {effect.change.mean():.1%}" for effect in self.words]


def explain(model: Text2Image, prompt: str, *, seed: int = 0, truncation_psi: float = 1.0) -> Explanation:
    """Draw `prompt`, and again without each of its words.

    Raises `UsageError` for a prompt of a single word, of more than `MOST_WORDS`, or longer than the text encoder reads.
    """
    picture, effects = word_effects(model, prompt, seed=seed, truncation_psi=truncation_psi)
    model.warn([prompt])
    return Explanation(prompt, picture, tuple(effects))


def word_effects(model: Text2Image, prompt: str, *, seed: int = 0, truncation_psi: float = 1.0) -> tuple[Image.Image, Iterator[WordEffect]]:
    """Draw `prompt` as for `explain`, and return an iterator of the effects, which draws without a word when it is asked for that word."""
    [prompt], seed, psi = as_prompts(prompt), as_integer(seed, "seed"), as_number(truncation_psi, "truncation_psi")
    words = prompt.split()
    if not 2 <= len(words) <= MOST_WORDS:
        raise UsageError(f"a prompt of 2 to {MOST_WORDS} words can be explained, and this one has {len(words)}")
    spans = token_spans(model.encoder, words)
    with recorded_attention(model.generator) as maps:
        [picture] = draw(model.generator, model.encoder, [" ".join(words)], [seed], psi)
    shares = attention_maps(maps, picture.width)  # [L, R, R]
    drawn = to_uint8([picture]).float()

    def effects() -> Iterator[WordEffect]:
        others = [" ".join(words[:index] + words[index + 1 :]) for index in range(len(words))]
        for word, (start, stop), without in zip(words, spans, draw(model.generator, model.encoder, others, [seed], psi), strict=True):
            change = (to_uint8([without]).float() - drawn).abs().mean(dim=(0, 1)) / 255
            yield WordEffect(word, without, change, shares[start:stop].sum(dim=0))

    return picture, effects()


def can_explain(model: Text2Image, prompt: str) -> bool:
    """Return True for a prompt that `explain` takes."""
    return 2 <= len(prompt.split()) <= MOST_WORDS and model.encoder.count_tokens([" ".join(prompt.split())])[0] <= model.encoder.max_tokens


def token_spans(encoder: SentenceEncoder, words: list[str]) -> list[tuple[int, int]]:
    """Return where each word's tokens begin and end among those of the whole prompt; raises `UsageError` where the prompt is cut."""
    first, twice, *lengths = encoder.count_tokens([words[0], f"{words[0]} {words[0]}", *(" ".join(words[: n + 1]) for n in range(len(words)))])
    if lengths[-1] > encoder.max_tokens:
        raise UsageError(f"the prompt has {lengths[-1]} tokens, and the model reads {encoder.max_tokens}: only a shorter one can be explained")
    special = 2 * first - twice  # tokens that belong to no word: a start and an end, or an end alone
    after = special - special // 2
    return list(itertools.pairwise([special // 2, *(length - after for length in lengths)]))


@contextmanager
def recorded_attention(generator: Generator) -> Iterator[list[Tensor]]:
    """Yield a list that gets the weights [L, Q] of each attention to the words that `generator` computes inside the context."""
    maps: list[Tensor] = []

    def record(module: MultiHeadAttention, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        maps.append(_weights(module, *arguments, **options))

    reading = [
        module
        for name, module in generator.named_modules()
        if isinstance(module, MultiHeadAttention) and ("word_attention" in name or "local_style" in name)
    ]
    handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in reading]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _weights(module: MultiHeadAttention, x: Tensor, context: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Return the mean over the heads of the weights with which `module` reads a context of one prompt, [L, Q]."""
    query, key = module.to_query(x).unflatten(-1, (module.heads, -1)), module.to_key(context).unflatten(-1, (module.heads, -1))
    scores = torch.einsum("nqhc,nlhc->nhlq", query, key) / math.sqrt(query.shape[-1])
    if bias is not None:
        scores = scores + bias.transpose(1, 2)[:, None]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, :, None], float("-inf"))
    return scores.softmax(dim=2).mean(dim=1)[0].float().cpu()


def attention_maps(maps: list[Tensor], side: int) -> Tensor:
    """Return the mean of weights [L, Q], each at the Q places of a square map, as [L, side, side]."""
    squares = [weights.unflatten(1, (math.isqrt(weights.shape[1]), -1))[None] for weights in maps]
    return torch.stack([F.interpolate(square, size=(side, side), mode="bilinear")[0] for square in squares]).mean(dim=0)


def _lit(picture: Image.Image, light: Tensor) -> Image.Image:
    """Return the picture in grey, darkened but for where `light` [R, R] in [0, 1] is high."""
    grey = np.asarray(composite_on_grey(picture).convert("L"), dtype=np.float32)
    level = (0.15 + 0.85 * light.numpy()) * (0.35 * grey + 0.65 * 255)
    return Image.fromarray(level.round().astype(np.uint8)).convert("RGB")
