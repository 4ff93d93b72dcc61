"""Changes a picture by words: from "an apple" to "a blue apple".

A generator cannot draw every picture, and need not. It is moved as near to the picture as it comes, by an offset to its style (GAN inversion,
Abdal et al. 2019, arXiv 1904.03189), and draws it with the old words and with the new ones. The difference of both is added to the picture, in
latents where the model has them, so that whatever the generator missed stays. N pictures, Z latent width, R resolution.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gan_t2i.core.arguments import as_integer, as_number, as_prompts
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.images import from_uint8, to_pictures
from gan_t2i.core.runtime import torch_defaults
from gan_t2i.core.words import split_words
from gan_t2i.data.decode import BadImageError, load_image, open_image, to_rgba
from gan_t2i.data.recolour import COLOUR_WORDS
from gan_t2i.data.records import LazyFile
from gan_t2i.data.settings import DataSettings
from gan_t2i.models.base import Generator
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.sampling.draw import latent
from gan_t2i.sampling.pipeline import Text2Image

STEPS = 100  # of Adam; without any, edges of the old picture show more, and 200 change little
RATE = 0.05
MOST_WORDS = 24  # a picture is drawn without each of them


@dataclass(frozen=True)
class Change:
    """A change of a picture, as `prompt` differs from `source`."""

    prompt: str
    """Text that the picture is to match."""
    source: str | None = None
    """Text that it matches; by default `likely_source` finds it."""
    seed: int = 0
    """Seed of the z that both are drawn with."""
    strength: float = 1.0
    """Share of the change, above 1 for more of it."""
    steps: int | None = None
    """Steps of the search for the style; None takes `STEPS`."""
    mask: Tensor | None = None
    """[1, 1, R, R], 1 where the picture may change and 0 where it stays as it is; None lets it change anywhere."""


def read_picture(source: Path | LazyFile, model: Text2Image) -> Tensor:
    """Return a picture, with borders where it is not square, as the model draws: [1, C, R, R] in [-1, 1].

    Raises `GanT2IError` for a file that cannot be read.
    """
    return _read(source, model, alpha=model.info.has_alpha)


def read_mask(source: Path | LazyFile, model: Text2Image) -> Tensor:
    """Return the mask of a picture of the same shape for a `Change`: [1, 1, R, R], 1 where the file is transparent.

    Raises `GanT2IError` for a file that cannot be read, or that is transparent nowhere.
    """
    mask = (1 - _read(source, model, alpha=True)[:, 3:]) / 2
    with open_image(source) as image:  # borders, where it is not square, are transparent in any case
        is_opaque = to_rgba(image).getchannel("A").getextrema() == (255, 255)
    if is_opaque:
        raise GanT2IError(f"{source.name} has no transparent places: those are what is edited")
    return mask


def _read(source: Path | LazyFile, model: Text2Image, *, alpha: bool) -> Tensor:
    try:
        pixels = load_image(source, model.info.resolution, DataSettings(crop="pad", alpha=alpha))
    except BadImageError as error:
        raise GanT2IError(f"{source.name} cannot be edited: {error}") from error
    return from_uint8(torch.from_numpy(pixels)[None]).to(model.device)


def edit(model: Text2Image, picture: Tensor, change: Change) -> Image.Image:
    """Return a picture, one of `read_picture`, that is changed.

    >>> model = Text2Image.load()
    >>> edit(model, read_picture(Path("apple.png"), model), Change("a blue apple", source="an apple")).save("blue.png")

    Raises `UsageError` for a generator without a mapping network.
    """
    return next(filter(None, edit_in_pieces(model, picture, change)))


def edit_in_pieces(model: Text2Image, picture: Tensor, change: Change) -> Iterator[Image.Image | None]:
    """Do the work of `edit` in pieces of a forward pass or a few: yield None after each, and the picture after the last.

    Between two pieces the model is as it was, so that others may use it.
    """
    texts = as_prompts([change.prompt, *([change.source] if change.source is not None else [])])
    seed, strength = as_integer(change.seed, "seed"), as_number(change.strength, "strength")
    search = _Search(model, picture, texts, seed)
    yield None
    for _ in range(STEPS if change.steps is None else change.steps):
        search.step()
        yield None
    changed = search.changed(strength)
    with torch.no_grad():
        [edited] = to_pictures(changed if change.mask is None else torch.lerp(picture, changed, change.mask))
    yield edited


def mapped_generator(model: Text2Image) -> Generator:
    """Return the generator whose styles `edit` moves: in latents where the model has them. Raises `UsageError` where it has no styles."""
    generator = model.generator
    G = generator.G if isinstance(generator, LatentGenerator) else generator
    if not isinstance(getattr(G, "mapping", None), torch.nn.Module):
        raise UsageError(f"the generator {model.info.generator.name!r} has no mapping network: pictures cannot be edited with it")
    return G


def likely_source(model: Text2Image, G: Generator, wanted: Tensor, prompt: str, z: Tensor) -> str:
    """Return what a picture may show that `prompt` is to change: the prompt without its colours, or where it names none, without the word
    whose absence brings G's picture nearest to it, among the first `MOST_WORDS`. `wanted` is the picture in G's space, [1, K, S, S]."""
    words = prompt.split()
    plain = [word for word in words if COLOUR_WORDS.isdisjoint(split_words(word))]
    if len(words) < 2 or 0 < len(plain) < len(words):
        return " ".join(plain or words)
    others = [" ".join(words[:at] + words[at + 1 :]) for at in range(min(len(words), MOST_WORDS))]
    with torch.no_grad():
        drawn = [G(z, model.encoder.encode([other]).to(model.device)) for other in others]
    distances = [(each - wanted).square().mean() for each in drawn]
    return others[int(torch.stack(distances).argmin())]


class _Search:
    """The search for an offset to the style, [1, W], with which the old words draw nearly the picture. `texts` are the new and the old words,
    or the new ones alone."""

    @torch_defaults()
    @torch.no_grad()
    def __init__(self, model: Text2Image, picture: Tensor, texts: list[str], seed: int) -> None:
        self.G = mapped_generator(model)
        self.autoencoder = model.generator.autoencoder if isinstance(model.generator, LatentGenerator) else None
        self.z = latent(model.generator, seed).to(model.device)
        self.wanted = self.autoencoder.encode(picture) if self.autoencoder else picture
        if len(texts) == 1:
            texts = [*texts, likely_source(model, self.G, self.wanted, texts[0], self.z)]
        self.new, self.old = (model.encoder.encode([text]).to(model.device) for text in texts)
        self.offset = torch.zeros_like(self.G.mapping(self.z, self.G.text_head(self.new).sentence)).requires_grad_()
        self.adam = torch.optim.Adam([self.offset], RATE)

    @torch_defaults()
    def step(self) -> None:
        """Take one step towards the picture."""
        with _moved(self.G, self.offset):
            distance = (self.G(self.z, self.old) - self.wanted).square().mean()
        self.adam.zero_grad()
        distance.backward()
        self.adam.step()

    @torch_defaults()
    @torch.no_grad()
    def changed(self, strength: float) -> Tensor:
        """Return the picture with the difference of both drawings added to it, [1, C, R, R]."""
        with _moved(self.G, self.offset):
            changed = self.wanted + strength * (self.G(self.z, self.new) - self.G(self.z, self.old))
        return self.autoencoder.decode(changed) if self.autoencoder else changed


@contextmanager
def _moved(G: Generator, offset: Tensor) -> Iterator[None]:
    """Context in which `offset` is added to the styles of G."""
    handle = G.mapping.register_forward_hook(lambda module, inputs, w: w + offset)
    try:
        yield
    finally:
        handle.remove()
