"""Files of pictures: their names, and a folder that is filled picture by picture and gone on with after a stop."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gan_t2i.core.files import slug
from gan_t2i.core.images import read_origin, save_picture
from gan_t2i.sampling.best_of import Best
from gan_t2i.sampling.draw import draw
from gan_t2i.sampling.pipeline import Text2Image

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A picture in its file."""

    prompt: str
    seed: int
    path: Path
    drawn: bool
    """False where the file held the picture before."""


def save_all(
    model: Text2Image,
    prompts: Sequence[str],
    seeds: Sequence[int],
    truncation_psi: float,
    folder: Path,
    *,
    overwrite: bool = False,
    best: Iterable[Best] | None = None,
) -> Iterator[Saved]:
    """Draw every prompt with every seed into `folder`, and yield each picture once it is in its file.

    A file that holds its picture already is left as it is. One that holds anything else is not replaced: the prompt takes the next number.
    With `overwrite`, all are drawn again, and files are replaced. With `best`, which `best_of` gives for the same prompts and seeds, only the
    best picture of each prompt is written. Raises `UsageError` where a file cannot be written.
    """
    told = False

    def path_of(stem: str, seed: int) -> Path:
        return folder / f"{stem}-seed{seed}.png"

    def origin(prompt: str, seed: int) -> str:
        # a digest, because a shared file is not to tell its prompt
        return hashlib.blake2b(json.dumps([model.fingerprint, prompt, seed, truncation_psi]).encode(), digest_size=16).hexdigest()

    def is_free(stem: str, prompt: str) -> bool:
        nonlocal told
        for seed in () if overwrite else seeds:
            path = path_of(stem, seed)
            if path.exists() and read_origin(path) != origin(prompt, seed):
                if not told:
                    log.info(f"{path} holds something else and stays; the new picture gets a number (--overwrite replaces it)")
                told = True
                return False
        return True

    if best is None:
        model.warn(prompts)
    for prompt, stem, one in zip(prompts, stems(prompts, is_free), [None] * len(prompts) if best is None else best, strict=True):
        wanted = [one.seed] if one else seeds
        missing = {seed: None for seed in wanted if overwrite or not path_of(stem, seed).exists()}
        pictures = iter([one.picture]) if one else draw(model.generator, model.encoder, [prompt], list(missing), truncation_psi)
        for seed in wanted:
            path = path_of(stem, seed)
            if seed in missing:
                save_picture(next(pictures), path, origin(prompt, seed))
            yield Saved(prompt, seed, path, drawn=seed in missing)


def stems(prompts: Iterable[str], is_free: Callable[[str, str], bool] = lambda stem, prompt: True) -> Iterator[str]:
    """Yield a name for each prompt: its words, and a number where an earlier prompt has the same, or where `is_free`, which is called with the
    name and the prompt, says no."""
    numbers: Counter[str] = Counter()
    for prompt in prompts:
        stem = slug(prompt)
        if stem == slug("") or len(slug(prompt, len(prompt))) > len(stem):  # nothing left, or cut: the digest keeps prompts apart
            stem += "-" + hashlib.blake2b(prompt.encode(), digest_size=3).hexdigest()
        while True:
            numbers[stem] += 1
            name = f"{stem}.{numbers[stem]}" if numbers[stem] > 1 else stem
            if is_free(name, prompt):
                break
        yield name


def file_names(prompts: Iterable[str], seeds: Sequence[int]) -> list[str]:
    """Return the file names in an empty folder, for every prompt with every seed, prompt by prompt."""
    return [f"{stem}-seed{seed}.png" for stem in stems(prompts) for seed in seeds]
