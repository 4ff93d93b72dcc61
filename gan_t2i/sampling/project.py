"""Finds z, styles and words with which a model draws a picture of yours: GAN inversion, shown beside the picture."""

import logging
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gan_t2i.core.arguments import as_integer, as_prompts
from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import sheet, to_pictures, to_uint8
from gan_t2i.core.runtime import torch_defaults
from gan_t2i.core.words import counted
from gan_t2i.sampling.draw import draw_one, encode_prompt, latent
from gan_t2i.sampling.inversion import Inversion, mapped_generator, moved
from gan_t2i.sampling.pipeline import Text2Image

STEPS = 100  # of L-BFGS
PENALTY = 0.001  # on the offsets; it costs 0.2 dB, and other words keep more of their meaning
_BATCH = 64  # words that are drawn at once, and those that are tried in each style
_SIDE = 16  # of the drawings that are compared

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Projection:
    """A picture as a model draws it: from words, the z of a seed, and offsets to the styles."""

    model: str
    """`Text2Image.fingerprint` of the model that it belongs to."""
    prompt: str
    seed: int
    offsets: Tensor
    """[1 + blocks, W], as `sampling.inversion.moved` adds them."""
    picture: Image.Image
    """The picture itself, at the model's size."""
    parts: dict[str, Image.Image]
    """The model's versions by name: "rebuilt" by its autoencoder, where it has one, "words alone", and "projected"."""

    @property
    def psnr(self) -> dict[str, float]:
        """PSNR of each part against the picture in dB, 100 at most; transparent ones over grey."""
        whole, *parts = to_uint8([self.picture, *self.parts.values()]).float() / 255
        return {name: -10 * math.log10(max((part - whole).square().mean().item(), 1e-10)) for name, part in zip(self.parts, parts, strict=True)}

    def sheet(self) -> Image.Image:
        """Return the picture and the parts side by side."""
        captions = ["picture", *(f"{name}, {psnr:.1f} dB" for name, psnr in self.psnr.items())]
        return sheet([[each] for each in (self.picture, *self.parts.values())], captions, cell=192, blocks=len(captions))

    def redraw(self, model: Text2Image, prompt: str) -> Image.Image:
        """Draw another prompt with the same z and offsets; the projection's own gives its picture again.

        Raises `UsageError` for another model than that of the projection.
        """
        [prompt] = as_prompts(prompt)
        if model.fingerprint != self.model:
            raise UsageError("the styles were found for another model: project the picture with this one")
        with moved(mapped_generator(model), self.offsets):
            return draw_one(model.generator, latent(model.generator, self.seed), encode_prompt(model.generator, model.encoder, prompt))


def project(model: Text2Image, picture: Tensor, prompt: str | None = None, *, seed: int = 0, steps: int = STEPS) -> Projection:
    """Find the styles with which `prompt` and the z of `seed` draw a picture, one of `sampling.inversion.read_picture`.

    >>> model = Text2Image.load()
    >>> projection = project(model, read_picture(Path("apple.png"), model), "apple")
    >>> projection.redraw(model, "a blue apple").save("blue.png")

    Without a prompt, `guess_words` gives one. Raises `UsageError` for a generator without a mapping network.
    """
    [prompt] = as_prompts(prompt) if prompt is not None else [None]
    seed, steps = as_integer(seed, "seed"), as_integer(steps, "steps")
    search = Inversion(model, picture, seed)
    model.warn([prompt] if prompt is not None else [])
    words = guess_words(search) if prompt is None else prompt
    latents = {"rebuilt": search.wanted} if search.autoencoder else {}
    latents["words alone"] = search.draw(words)
    search.begin(words, PENALTY)
    log.info(f"searching for the styles, in {counted(steps, 'step')}")
    for _ in range(steps):
        search.step()
    latents["projected"] = search.draw(words)
    parts = {name: to_pictures(search.decode(drawn))[0] for name, drawn in latents.items()}
    assert search.best is not None
    return Projection(model.fingerprint, words, seed, search.best, to_pictures(picture)[0], parts)


def guess_words(search: Inversion) -> str:
    """Return a word that the model knows and, where it knows styles, one of them, whose drawing is most like the picture.

    It is a guess, and mostly a wrong one for what the model was not trained on. Raises `UsageError` for a model that does not list its words.
    """
    card = search.model.info.card
    if card is None or not card.words:
        raise UsageError("the model does not list the words that it knows, so none can be guessed: say what the picture shows (-p)")
    log.info(f"guessing the words, among {len(card.words):,} that the model knows; -p says them")
    drawn = _draw_small(search, card.words)
    mean = drawn.mean(dim=0)
    wanted = _small(search.wanted) - mean

    def by_likeness(prompts: list[str] | tuple[str, ...], drawn: Tensor) -> list[str]:
        return [prompts[index] for index in F.cosine_similarity(drawn - mean, wanted).argsort(descending=True).tolist()]

    words = by_likeness(card.words, drawn)
    styled = [f"{word}, {style} style" for word in words[:_BATCH] for style in card.styles]
    return by_likeness(styled, _draw_small(search, styled))[0] if styled else words[0]


def _draw_small(search: Inversion, prompts: list[str] | tuple[str, ...]) -> Tensor:
    """Draw many prompts and return `_small` of each."""
    return torch.cat([_small(search.draw(*prompts[at : at + _BATCH])) for at in range(0, len(prompts), _BATCH)])


@torch_defaults()
@torch.no_grad()
def _small(drawn: Tensor) -> Tensor:
    """Return drawings [N, K, S, S] as vectors [N, K * 16 * 16], so that thousands need little memory."""
    return F.adaptive_avg_pool2d(drawn, _SIDE).flatten(1)
