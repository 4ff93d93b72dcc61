"""Changes a picture by words: from "an apple" to "a blue apple".

A generator cannot draw every picture, and need not. It is moved as near to the picture as it comes, by an offset to its style (GAN inversion,
Abdal et al. 2019, arXiv 1904.03189), and draws it with the old words and with the new ones. The difference of both is added to the picture, in
latents where the model has them, so that whatever the generator missed stays. N pictures, Z latent width, R resolution.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gan_t2i.core.arguments import as_integer, as_number, as_prompts
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.images import from_uint8, to_pictures
from gan_t2i.core.runtime import torch_defaults
from gan_t2i.core.words import split_words
from gan_t2i.data.decode import BadImageError, load_image
from gan_t2i.data.recolour import COLOUR_WORDS
from gan_t2i.data.records import LazyFile
from gan_t2i.data.settings import DataSettings
from gan_t2i.models.base import Generator
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.sampling.draw import latent
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.text.batch import TextBatch

STEPS = 100  # of Adam; without any, edges of the old picture show more, and 200 change little
RATE = 0.05


def read_picture(source: Path | LazyFile, model: Text2Image) -> Tensor:
    """Return a picture, with borders where it is not square, as the model draws: [1, C, R, R] in [-1, 1].

    Raises `GanT2IError` for a file that cannot be read.
    """
    settings = DataSettings(crop="pad", alpha=model.info.has_alpha)
    try:
        pixels = load_image(source, model.info.resolution, settings)
    except BadImageError as error:
        raise GanT2IError(f"{source.name} cannot be edited: {error}") from error
    return from_uint8(torch.from_numpy(pixels)[None]).to(model.device)


@torch_defaults()
def edit(
    model: Text2Image, picture: Tensor, prompt: str, *, source: str | None = None, seed: int = 0, strength: float = 1.0, steps: int = STEPS
) -> Image.Image:
    """Return a picture that is changed as `prompt` differs from `source`.

    >>> model = Text2Image.load()
    >>> edit(model, read_picture(Path("apple.png"), model), "a blue apple", source="an apple").save("blue.png")

    Args:
        model: the model.
        picture: of `read_picture`.
        prompt: what the picture is to show.
        source: what it shows; by default `likely_source` finds it.
        seed: seed of the z that both are drawn with.
        strength: share of the change, above 1 for more of it.
        steps: steps of the search for the style.

    Raises `UsageError` for a generator without a mapping network.
    """
    texts, seed, strength = (
        as_prompts([prompt, *([source] if source is not None else [])]),
        as_integer(seed, "seed"),
        as_number(strength, "strength"),
    )
    generator = model.generator
    G = generator.G if isinstance(generator, LatentGenerator) else generator
    if not isinstance(getattr(G, "mapping", None), torch.nn.Module):
        raise UsageError(f"the generator {model.info.generator.name!r} has no mapping network: pictures cannot be edited with it")
    z = latent(generator, seed).to(model.device)
    with torch.no_grad():
        wanted = generator.autoencoder.encode(picture) if isinstance(generator, LatentGenerator) else picture
    if source is None:
        texts.append(likely_source(model, G, wanted, prompt, z))
    new, old = (model.encoder.encode([text]).to(model.device) for text in texts)
    offset = _nearest_style(G, z, old, wanted, steps)
    with torch.no_grad(), _moved(G, offset):
        changed = wanted + strength * (G(z, new) - G(z, old))
        return to_pictures(generator.autoencoder.decode(changed) if isinstance(generator, LatentGenerator) else changed)[0]


def likely_source(model: Text2Image, G: Generator, wanted: Tensor, prompt: str, z: Tensor) -> str:
    """Return what a picture may show that `prompt` is to change: the prompt without its colours, or where it names none, without the word
    whose absence brings G's picture nearest to it. `wanted` is the picture in G's space, [1, K, S, S]."""
    words = prompt.split()
    plain = [word for word in words if COLOUR_WORDS.isdisjoint(split_words(word))]
    if len(words) < 2 or 0 < len(plain) < len(words):
        return " ".join(plain or words)
    others = [" ".join(words[:at] + words[at + 1 :]) for at in range(len(words))]
    with torch.no_grad():
        drawn = [G(z, model.encoder.encode([other]).to(model.device)) for other in others]
    distances = [(each - wanted).square().mean() for each in drawn]
    return others[int(torch.stack(distances).argmin())]


@torch.enable_grad()
def _nearest_style(G: Generator, z: Tensor, text: TextBatch, wanted: Tensor, steps: int) -> Tensor:
    """Return the offset to the style, [1, W], with which G's picture comes near to the one that is wanted."""
    with torch.no_grad():
        offset = torch.zeros_like(G.mapping(z, G.text_head(text).sentence)).requires_grad_()
    adam = torch.optim.Adam([offset], RATE)
    with _moved(G, offset):
        for _ in range(steps):
            distance = (G(z, text) - wanted).square().mean()
            adam.zero_grad()
            distance.backward()
            adam.step()
    return offset.detach()


@contextmanager
def _moved(G: Generator, offset: Tensor) -> Iterator[None]:
    """Context in which `offset` is added to the styles of G."""
    handle = G.mapping.register_forward_hook(lambda module, inputs, w: w + offset)
    try:
        yield
    finally:
        handle.remove()
