"""Text to image with a trained model: a snapshot, its text encoder, and one forward pass per picture."""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Self, SupportsFloat, SupportsIndex

import torch
from PIL import Image

from gan_t2i.checkpoint import SnapshotInfo, load_snapshot
from gan_t2i.core.arguments import Seeds, as_number, as_prompts, as_seeds
from gan_t2i.core.config import read_yaml
from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import from_uint8, to_pictures, to_uint8
from gan_t2i.core.runtime import pick_device, torch_defaults
from gan_t2i.core.weights import hash_state
from gan_t2i.core.words import shorten, split_words
from gan_t2i.models.base import Generator
from gan_t2i.models.latent_generator import LatentGenerator
from gan_t2i.runs import PRETRAINED, resolve_snapshot, run_of
from gan_t2i.sampling.draw import draw
from gan_t2i.sampling.publish import check_repository
from gan_t2i.text.encoder import SentenceEncoder, build_encoder

log = logging.getLogger(__name__)

MOST_WARNINGS = 20  # on the prompts of one call; a file may have thousands, each with another typing error
MOST_UNKNOWN = 200  # characters of the unknown words in one warning; a prompt may be one word of thousands of letters


class Text2Image:
    """A trained model that generates pictures from prompts.

    >>> from gan_t2i import Text2Image
    >>> model = Text2Image.load()  # or a run folder, a snapshot file, or "latest"
    >>> red, blue = model.generate(["a red heart", "a blue heart"])
    >>> red.save("red.png")

    Args:
        generator: in evaluation mode, on the device to run on.
        encoder: the frozen text encoder that the generator was trained with.
        info: the metadata of the snapshot.
    """

    def __init__(self, generator: Generator, encoder: SentenceEncoder, info: SnapshotInfo) -> None:
        self.generator = generator
        self.encoder = encoder
        self.info = info

    @property
    def device(self) -> torch.device:
        """Device that the generator runs on."""
        return next(self.generator.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the snapshot's contents, the same wherever its file lies."""
        parts = [asdict(self.info), hash_state(self.generator)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    @classmethod
    @torch_defaults()
    def load(cls, path: str | Path = "pretrained", *, text_encoder: str | None = None, device: str = "auto") -> Self:
        """Load a trained model.

        Args:
            path: a snapshot file; a run folder, whose newest snapshot is loaded; a repository folder that `gan-t2i export --to hub` wrote;
                ``latest``, the newest run in ./runs; or ``pretrained`` or ``pretrained:NAME``, a small model that comes with gan_t2i.
            text_encoder: a local folder or a name on the Hugging Face hub with the text encoder's weights; by default they are looked for
                where training found them.
            device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; ``auto`` takes the first of CUDA, MPS and the CPU that works here.

        Raises `GanT2IError` where a file is missing or damaged, or where the encoder is not the one that the model was trained with. The
        loggers below ``gan_t2i`` report what was loaded.
        """
        snapshot = resolve_snapshot(str(path))
        check_repository(snapshot)
        generator, info = load_snapshot(snapshot)
        name = f"the pretrained {snapshot.stem}" if snapshot.parent == PRETRAINED else snapshot
        size = f"{info.resolution} px{' with alpha' * info.has_alpha}"
        log.info(f"model: {name} ({info.generator.name}, {size}, {info.nimg:,} images, data {info.data_name})")
        built = info.encoder.built
        model = text_encoder or _encoder_folder(snapshot)
        params = {**built.params, "model": model, "revision": None} if model else built.params
        encoder = build_encoder(built.name, params, built.interface, expected_hash=info.encoder.weights_hash)
        return cls(generator.to(memory_format=torch.channels_last), encoder, info).to(device)

    @torch_defaults()
    def to(self, device: str | torch.device) -> Self:
        """Move the generator to `device`, one that `load` takes, and return the model. The text encoder stays on the CPU.

        Raises `UsageError` where the device cannot be used here.
        """
        self.generator.to(pick_device(str(device)))
        return self

    def generate(self, prompts: str | Iterable[str], *, seeds: Seeds = 0, truncation_psi: SupportsFloat = 1.0) -> list[Image.Image]:
        """Generate a picture of every prompt with every seed.

        Args:
            prompts: one or several descriptions.
            seeds: one or several integers; another seed gives another picture of the same prompt.
            truncation_psi: below 1, pictures are more typical and vary less.

        Returns:
            RGB pictures, or RGBA ones of a model trained with transparency: prompt by prompt, each with its seeds in order.

        A picture depends only on its prompt, its seed and `truncation_psi`, and not on the others in the call. Words beyond the encoder's
        limit are cut off with a warning. Raises `UsageError` for an empty prompt, a seed that is no integer, and a truncation that is no finite
        number.
        """
        return list(self.stream(prompts, seeds=seeds, truncation_psi=truncation_psi))

    @torch.no_grad()
    def rebuild(self, images: torch.Tensor) -> torch.Tensor:
        """Encode and decode uint8 images [N, C, R, R] with the model's autoencoder; returns uint8 [N, 3, R, R], over grey where transparent.

        Raises `UsageError` for a model of pixels, which has none.
        """
        if not isinstance(self.generator, LatentGenerator):
            raise UsageError("this model draws pixels: it has no autoencoder to rebuild pictures with")
        return to_uint8(to_pictures(self.generator.autoencoder.rebuild(from_uint8(images.to(self.device)))))

    def stream(self, prompts: str | Iterable[str], *, seeds: Seeds = 0, truncation_psi: SupportsFloat = 1.0) -> Iterator[Image.Image]:
        """Generate the pictures of `generate` one by one, each when it is asked for, so that thousands need no memory.

        >>> for number, picture in enumerate(model.stream(prompts)):
        ...     picture.save(f"{number}.png")

        Arguments are as for `generate`, and checked at once.
        """
        checked = as_prompts(prompts), as_seeds(seeds), as_number(truncation_psi, "truncation_psi")
        return self._stream(*checked)

    def _stream(self, prompts: Sequence[str], seeds: Sequence[int], truncation_psi: float) -> Iterator[Image.Image]:
        self.warn(prompts if seeds else ())
        for prompt in prompts if seeds else ():
            yield from draw(self.generator, self.encoder, [prompt], seeds, truncation_psi)

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the words of a prompt, in lower case, that the model was never trained with, where its model card lists the others."""
        return self.info.card.unknown_words(prompt) if self.info.card is not None else []

    def warnings(self, prompt: str) -> list[str]:
        """Return a sentence on the words in `prompt` that the model does not know, and one on those that it does not read."""
        return self._warnings(prompt, *self.encoder.count_tokens([prompt]))

    def _warnings(self, prompt: str, length: int) -> list[str]:
        sentences = []
        if unknown := self.unknown_words(prompt):
            styles = self.info.card.styles if self.info.card is not None and "style" in split_words(prompt) else ()
            known = f"; its styles are {', '.join(styles)}" * bool(styles)
            sentences.append(f"never seen in training: {shorten(', '.join(map(repr, unknown)), MOST_UNKNOWN)}{known}")
        if length > self.encoder.max_tokens:
            sentences.append(f"it has {length} tokens; the model reads {self.encoder.max_tokens}, the rest is left out")
        return sentences

    def warn(self, prompts: Iterable[str]) -> None:
        """Log the `warnings` for the prompts, as `generate` does: what several share is said for the first, and counted for the others."""
        prompts, said = list(prompts), dict[str, list[str]]()
        for prompt, length in zip(prompts, self.encoder.count_tokens(prompts), strict=True):
            for warning in self._warnings(prompt, length):
                said.setdefault(warning, []).append(prompt)
        for warning, (first, *others) in itertools.islice(said.items(), MOST_WARNINGS):
            log.warning(f"prompt {shorten(first, 40)!r}{f' and {len(others):,} more' * bool(others)}: {warning}")
        if (left_out := len(said) - MOST_WARNINGS) > 0:
            log.warning(f"{left_out:,} more such sentences on the prompts are left out")


def _encoder_folder(snapshot: Path) -> str | None:
    """The local folder that the snapshot's run took its text encoder from; the run's config has the full path, the snapshot does not."""
    run = run_of(snapshot)
    model = read_yaml(run.config).get("text_encoder", {}).get("params", {}).get("model") if run else None
    return model if model and Path(model).is_dir() else None


def generate_image(
    prompt: str, *, seed: SupportsIndex = 0, model: str | Path = "pretrained", truncation_psi: SupportsFloat = 1.0
) -> Image.Image:
    """Generate one picture of `prompt`; `model` is anything that `Text2Image.load` takes.

    >>> from gan_t2i import generate_image
    >>> generate_image("a red heart above a blue star").save("heart.png")

    The model is loaded at every call: for more than one picture, load a `Text2Image` once.
    """
    return Text2Image.load(model).generate([prompt], seeds=[seed], truncation_psi=truncation_psi)[0]
