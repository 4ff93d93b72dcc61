"""Pictures between and around others: from one prompt to another, mixes of two, and variations of a seed. N pictures, L tokens, Z latent
width."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gan_t2i.core.arguments import as_integer, as_number, as_prompts
from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import to_pictures
from gan_t2i.core.runtime import torch_defaults
from gan_t2i.models.base import Generator
from gan_t2i.ops.checkpointing import Block
from gan_t2i.sampling.draw import draw_one, latent
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.text.batch import TextBatch


def interpolate(
    model: Text2Image, first: str, second: str, *, seeds: tuple[int, int] = (0, 0), frames: int = 16, truncation_psi: float = 1.0
) -> Iterator[Image.Image]:
    """Yield `frames` >= 2 pictures on the way from one prompt and seed to another; the ends are those that `Text2Image.generate` draws.

    Latents z go along the great circle between those of the seeds (White 2016, arXiv 1609.04468). Embeddings of words and sentences are
    mixed position by position; where a prompt is the shorter one, its last token stands in.
    """
    ends = as_prompts([first, second])
    steps, psi = as_integer(frames, "frames"), as_number(truncation_psi, "truncation_psi")
    if steps < 2:
        raise UsageError(f"{steps} frames: at least 2, one for each prompt")
    model.warn(ends)
    a, b = (model.encoder.encode([prompt]) for prompt in ends)
    z0, z1 = (latent(model.generator, as_integer(seed, "seed")) for seed in seeds)
    for index in range(steps):
        t = index / (steps - 1)
        yield draw_one(model.generator, slerp(z0, z1, t), blend(a, b, t), psi)


def variations(
    model: Text2Image, prompt: str, *, seed: int = 0, count: int = 8, strength: float = 0.5, truncation_psi: float = 1.0
) -> Iterator[Image.Image]:
    """Yield `count` pictures near that of `seed`: each goes from its z some way along the great circle to a random one.

    `strength` is that way, from 0, the picture of the seed itself, to 1, another seed's.
    """
    [text], number, psi = as_prompts(prompt), as_integer(seed, "seed"), as_number(truncation_psi, "truncation_psi")
    way = as_number(strength, "strength")
    if not 0 <= way <= 1:
        raise UsageError(f"strength {way:g}: from 0, no change, to 1, another seed")
    model.warn([text])
    encoded, z = model.encoder.encode([text]), latent(model.generator, number)
    for index in range(as_integer(count, "count")):
        yield draw_one(model.generator, slerp(z, latent(model.generator, number, index), way), encoded, psi)


def mix(model: Text2Image, shapes: str, colours: str, *, seeds: tuple[int, int] = (0, 0), truncation_psi: float = 1.0) -> Iterator[Image.Image]:
    """Yield pictures with the shapes of one prompt in the colours of another, the first with most of the shapes, the last the second prompt.

    There are as many pictures as the generator has blocks. Raises `UsageError` for a generator without at least two.
    """
    prompts, psi = as_prompts([shapes, colours]), as_number(truncation_psi, "truncation_psi")
    z = torch.cat([latent(model.generator, as_integer(seed, "seed")) for seed in seeds])
    model.warn(prompts)
    for kept in range(_checked_kept(model), 0, -1):
        yield _draw_mixed(model, prompts, z, kept, psi)
    yield draw_one(model.generator, z[1:], model.encoder.encode(prompts[1:]), psi)


def most_kept(generator: Generator) -> int:
    """Return the number of blocks before the last, those whose features a mix can keep; 0 where the generator does not draw in blocks."""
    return max(0, sum(isinstance(module, Block) for module in generator.modules()) - 1)


def _checked_kept(model: Text2Image) -> int:
    """Return `most_kept`; raises `UsageError` where it is 0."""
    if not (count := most_kept(model.generator)):
        raise UsageError(f"the generator {model.info.generator.name!r} does not draw in blocks: its pictures cannot be mixed")
    return count


@torch_defaults()
@torch.no_grad()
def _draw_mixed(model: Text2Image, prompts: list[str], z: Tensor, kept: int, truncation_psi: float) -> Image.Image:
    """Draw a mix of two prompts with z [2, Z]: the first `kept` blocks give the features of the first prompt.

    StyleGAN mixes the styles of two latents (arXiv 1812.04948, section 3.1). Here the words decide on colours, and a seed rarely does, so
    that prompts are mixed. Styles at a place stay those of the second prompt, as does its share of the picture where blocks add up to one.
    """
    with features_of_first(model.generator, kept):
        images = model.generator(z.to(model.device), model.encoder.encode(prompts).to(model.device), truncation_psi)
    return to_pictures(images)[1]


@contextmanager
def features_of_first(generator: Generator, kept: int | Tensor) -> Iterator[None]:
    """Context in which all rows of a batch have the features of the first row after each of the first `kept` blocks.

    `kept` is a number, or a tensor [] of whole numbers, which a graph takes as an input.
    """
    ran = 0

    def keep(block: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        nonlocal ran
        ran += 1
        x, *rest = output if isinstance(output, tuple) else (output,)
        x = x[torch.arange(x.shape[0], device=x.device) * (kept < ran)]  # numbers of rows, or zeros: the first row for each
        return (x, *rest) if isinstance(output, tuple) else x

    handles = [module.register_forward_hook(keep) for module in generator.modules() if isinstance(module, Block)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def draw_point(
    model: Text2Image,
    prompt: str,
    *,
    to: str | None = None,
    t: float = 0.0,
    mixed: bool = False,
    seed: int = 0,
    x: float = 0.0,
    y: float = 0.0,
    truncation_psi: float = 1.0,
    encode: Callable[[str], TextBatch] | None = None,
) -> Image.Image:
    """Draw one picture of a plane through the z of `seed`, at `x` and `y` in [-1, 1], for a prompt at `t` of the way to the prompt `to`.

    At x = y = t = 0 it is the picture of `Text2Image.generate`. A `mixed` way is that of `mix`, with the shapes of `prompt`.
    `encode` encodes the prompts, except those of a mix, in place of the model's encoder.
    """
    z = latent(model.generator, seed)
    if x or y:
        moved = z + x * latent(model.generator, seed, 0) + y * latent(model.generator, seed, 1)
        z = F.normalize(moved) * z.norm()
    if mixed and to is not None and 0 < t < 1:
        return _draw_mixed(model, [prompt, to], z.expand(2, -1), math.ceil((1 - t) * _checked_kept(model)), truncation_psi)
    encode = encode or (lambda each: model.encoder.encode([each]))
    text = encode(prompt)
    if to is not None:
        text = blend(text, encode(to), t)
    return draw_one(model.generator, z, text, truncation_psi)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return the vector [1, Z] at `t` of the way along the arc from `a` to `b`; the length changes evenly."""
    if t in (0, 1):
        return b if t else a
    angle = math.acos(max(-1.0, min(1.0, F.cosine_similarity(a, b).item())))
    if math.sin(angle) < 1e-6:  # nearly the same direction, or the opposite one, between which there is no single arc
        return torch.lerp(a, b, t)
    direction = (math.sin((1 - t) * angle) * F.normalize(a) + math.sin(t * angle) * F.normalize(b)) / math.sin(angle)
    return direction * torch.lerp(a.norm(), b.norm(), t)


def blend(a: TextBatch, b: TextBatch, t: float) -> TextBatch:
    """Return a prompt at `t` of the way from one encoded prompt to another; at 0 and 1 it is that prompt itself."""
    if t in (0, 1):
        return b if t else a
    length = max(a.tokens.shape[1], b.tokens.shape[1])
    first, last = (torch.cat([x, x[:, -1:].expand(-1, length - x.shape[1], -1)], dim=1) for x in (a.tokens, b.tokens))
    return TextBatch(torch.lerp(first, last, t), torch.ones(1, length, dtype=torch.bool), torch.lerp(a.pooled, b.pooled, t))
