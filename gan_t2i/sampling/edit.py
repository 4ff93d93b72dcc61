"""Changes a picture by words: from "an apple" to "a blue apple".

A generator cannot draw every picture, and need not. `sampling.inversion` moves it nearer to the picture, and it draws with the old words and
with the new ones. The difference of both is added to the picture, in latents where the model has them, so that whatever the generator missed
stays. R resolution.
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gan_t2i.core.arguments import as_integer, as_number, as_prompts
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.images import to_pictures
from gan_t2i.core.words import shorten, split_words
from gan_t2i.data.decode import open_image, to_rgba
from gan_t2i.data.recolour import COLOUR_WORDS
from gan_t2i.data.records import LazyFile
from gan_t2i.sampling.inversion import Inversion, read_picture
from gan_t2i.sampling.pipeline import Text2Image

log = logging.getLogger(__name__)

STEPS = 20  # of the search; without any, edges of the old picture show more
PENALTY = 0.02  # on the offsets; without any, new colours are weaker, and with five times as much, edges of the old picture show
MOST_WORDS = 24  # a picture is drawn without each of them
_ARTICLE = re.compile(r"\ban?(?= (\w))")


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
    """Steps of the search for the styles; None takes `STEPS`."""
    mask: Tensor | None = None
    """[1, 1, R, R], 1 where the picture may change and 0 where it stays as it is; None lets it change anywhere."""


def read_mask(source: Path | LazyFile, model: Text2Image) -> Tensor:
    """Return the mask of a picture of the same shape for a `Change`: [1, 1, R, R], 1 where the file is transparent.

    Raises `GanT2IError` for a file that cannot be read, or that is transparent nowhere.
    """
    mask = (1 - read_picture(source, model, alpha=True)[:, 3:]) / 2
    with open_image(source) as image:  # borders, where it is not square, are transparent in any case
        is_opaque = to_rgba(image).getchannel("A").getextrema() == (255, 255)
    if is_opaque:
        raise GanT2IError(f"{source.name} has no transparent places: those are what is edited")
    return mask


def edit(model: Text2Image, picture: Tensor, change: Change) -> Image.Image:
    """Return a picture, one of `read_picture`, that is changed.

    >>> model = Text2Image.load()
    >>> edit(model, read_picture(Path("apple.png"), model), Change("a blue apple", source="an apple")).save("blue.png")

    Raises `UsageError` for a generator without a mapping network, and where the prompt is also what the picture shows.
    """

    def told(source: str) -> None:
        model.warn([change.prompt, *([source] if change.source else [])])
        if source.split() == change.prompt.split():
            raise UsageError(f"the prompt and --from are both {shorten(source, 80)!r}: say with --from what the picture shows now")
        if change.source is None:
            log.info(f"--from: {shorten(source, 80)!r}, a guess of what the picture shows")

    return next(filter(None, edit_in_pieces(model, picture, change, told)))


def edit_in_pieces(
    model: Text2Image, picture: Tensor, change: Change, told: Callable[[str], None] = lambda source: None
) -> Iterator[Image.Image | None]:
    """Do the work of `edit` in pieces of a forward pass or a few: yield None after each, and the picture after the last.

    Between two pieces the model is as it was, so that others may use it. `told` is called with the text that the picture is taken to match.
    """
    new, *given = as_prompts([change.prompt, *([change.source] if change.source is not None else [])])
    seed, strength = as_integer(change.seed, "seed"), as_number(change.strength, "strength")
    search = Inversion(model, picture, seed)
    old = given[0] if given else likely_source(search, new)
    told(old)
    search.begin(old, PENALTY)
    yield None
    for _ in range(STEPS if change.steps is None else change.steps):
        search.step()
        yield None
    with torch.no_grad():
        changed = search.decode(search.wanted + strength * (search.draw(new) - search.draw(old)))
        [edited] = to_pictures(changed if change.mask is None else torch.lerp(picture, changed, change.mask))
    yield edited


def likely_source(search: Inversion, prompt: str) -> str:
    """Return what a picture may show that `prompt` is to change: the prompt without its colours, or where it names none, without the word
    whose absence brings the drawing nearest to the picture, among the first `MOST_WORDS`."""
    words = prompt.split()
    plain = [word for word in words if COLOUR_WORDS.isdisjoint(split_words(word))]
    if len(words) < 2 or 0 < len(plain) < len(words):
        return _ARTICLE.sub(lambda found: "an" if found[1] in "aeiou" else "a", " ".join(plain or words))
    others = [" ".join(words[:at] + words[at + 1 :]) for at in range(min(len(words), MOST_WORDS))]
    return min(others, key=lambda other: (search.draw(other) - search.wanted).square().mean().item())
