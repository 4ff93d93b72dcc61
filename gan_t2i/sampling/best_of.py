"""The best of several seeds: the one picture of a prompt that a judge ranks first."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

from PIL import Image

from gan_t2i.core.arguments import Seeds, as_number, as_prompts, as_seeds
from gan_t2i.core.errors import UsageError
from gan_t2i.sampling.draw import draw
from gan_t2i.sampling.pipeline import Text2Image

Judge = Callable[[Sequence[Image.Image], str], Sequence[float]]
"""Scores pictures, RGB or RGBA, for a prompt: a number for each, higher where it matches better."""


@dataclass(frozen=True)
class Best:
    """The picture of a prompt that the judge ranks first, with its seed and its score."""

    prompt: str
    seed: int
    picture: Image.Image
    score: float


def best_of(
    model: Text2Image, prompts: str | Iterable[str], judge: Judge, *, seeds: Seeds = range(8), truncation_psi: SupportsFloat = 1.0
) -> Iterator[Best]:
    """Draw each prompt with every seed, and yield the picture with the highest score, the first among equals; prompt by prompt.

    >>> judge = matcher_judge(prepare_retrieval(dataset, model.encoder, model.device).matcher, model.encoder)  # both in gan_t2i.evaluation
    >>> for best in best_of(model, ["a red heart", "a blue heart"], judge):
    ...     best.picture.save(f"{best.prompt}, seed {best.seed}.png")

    DALL-E ranks its samples by a contrastive model in this way (Ramesh et al. 2021, arXiv 2102.12092, section 2.6). It can gain nothing where
    the seeds hardly differ, as in models that were trained with one picture per caption. The pictures are those of `Text2Image.generate`. Its
    other arguments and errors are the same, and checked at once; raises `UsageError` without a seed.
    """
    numbers = as_seeds(seeds)
    if not numbers:
        raise UsageError("no seeds: the best of none cannot be drawn")
    return _best_of(model, as_prompts(prompts), judge, numbers, as_number(truncation_psi, "truncation_psi"))


def _best_of(model: Text2Image, prompts: Sequence[str], judge: Judge, seeds: Sequence[int], truncation_psi: float) -> Iterator[Best]:
    model.warn(prompts)
    for prompt in prompts:
        pictures = list(draw(model.generator, model.encoder, [prompt], seeds, truncation_psi))
        score, seed, picture = max(zip(judge(pictures, prompt), seeds, pictures, strict=True), key=lambda each: each[0])
        yield Best(prompt, seed, picture, score)
