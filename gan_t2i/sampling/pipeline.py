"""From words to pictures: a snapshot, its text encoder, and one forward pass."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from gan_t2i.checkpoint import SnapshotInfo, load_snapshot
from gan_t2i.core.config import read_yaml
from gan_t2i.core.errors import UsageError
from gan_t2i.core.runtime import pick_device
from gan_t2i.models.base import Generator
from gan_t2i.runs import PRETRAINED, resolve_snapshot, run_of
from gan_t2i.sampling.draw import draw
from gan_t2i.text.encoder import SentenceEncoder, build_encoder

log = logging.getLogger(__name__)

UnknownWords = Callable[[str], Sequence[str]]


class Text2Image:
    """A trained model that draws prompts.

    Args:
        generator: in evaluation mode, on the device to draw on.
        encoder: the frozen text encoder that the generator was trained with.
        info: what the snapshot says of itself.
        unknown_words: which words of a prompt it has never been trained with, where that is known; they are drawn with a note.
    """

    def __init__(
        self, generator: Generator, encoder: SentenceEncoder, info: SnapshotInfo, unknown_words: Callable[[str], Sequence[str]] | None = None
    ) -> None:
        self.generator = generator
        self.encoder = encoder
        self.info = info
        self.unknown_words = unknown_words

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return next(self.generator.parameters()).device

    @classmethod
    def load(cls, path: str | Path = "auto", *, text_encoder: str | None = None, device: str = "auto") -> "Text2Image":
        """Load a snapshot, a run folder's newest one, ``latest``, the newest run's in ./runs, or ``pretrained``, the one that comes with
        gan_t2i; ``auto`` is the latest, and where there is none the pretrained one.

        `text_encoder` says where the encoder's weights are, a folder or a name on the hub; by default they are looked for where the
        training found them. Which were taken is logged. Raises `GanT2IError` with one sentence where something
        is missing or damaged, or where the encoder is not the one that the model was trained with.
        """
        snapshot = resolve_snapshot(str(path))
        generator, info = load_snapshot(snapshot)
        pretrained = snapshot == PRETRAINED
        name = f"the pretrained {snapshot.stem}" if pretrained else snapshot
        size = f"{info.resolution} px{' with alpha' * info.has_alpha}"
        log.info(f"model: {name} ({info.generator.name}, {size}, {info.nimg:,} images, data {info.data_name})")
        built = info.encoder.built
        model = text_encoder or _folder_of_run(snapshot)
        params = {**built.params, "model": model} if model else built.params
        encoder = build_encoder(built.name, params, built.interface, expected_hash=info.encoder.weights_hash)
        unknown_words: UnknownWords | None = None
        if pretrained:  # imported here, because no other model needs anything of the data
            from gan_t2i.data.builtin import shapes_grammar

            unknown_words = shapes_grammar.unknown_words
        return cls(generator.to(memory_format=torch.channels_last).to(pick_device(device)), encoder, info, unknown_words)

    def generate(self, prompts: str | Sequence[str], *, seeds: int | Sequence[int] = 0, truncation_psi: float = 1.0) -> list[Image.Image]:
        """Draw every prompt with every seed: RGB pictures, RGBA where the model draws transparent ones, prompt by prompt, each with its seeds
        in order.

        A picture depends on its prompt, its seed and `truncation_psi` alone: each is drawn by itself, because kernels round otherwise in
        another batch. Below 1, `truncation_psi` trades variety for typicality. An over-long prompt is logged as a warning.
        Raises `UsageError` for an empty prompt.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        seeds = [seeds] if isinstance(seeds, int) else list(seeds)
        self._check(prompts)
        return draw(self.generator, self.encoder, prompts, seeds, truncation_psi)

    def _check(self, prompts: Sequence[str]) -> None:
        for number, prompt in enumerate(prompts, 1):
            if not prompt.strip():
                raise UsageError(f"prompt {number} is empty: say what to draw")
            if prompt.encode(errors="ignore").decode() != prompt:  # lone surrogates: bytes of a shell that are no text
                raise UsageError(f"prompt {number} is not UTF-8 text: {prompt!r}")
        if self.unknown_words is not None:
            for prompt in prompts:
                if unknown := self.unknown_words(prompt):
                    log.warning(
                        f"prompt {prompt[:40]!r}: never seen in training: {', '.join(map(repr, unknown))}; this model knows simple shapes alone"
                    )
        for prompt, length in zip(prompts, self.encoder.count_tokens(prompts), strict=True):
            if length > self.encoder.max_tokens:
                log.warning(f"prompt {prompt[:40]!r}... has {length} tokens; the model reads {self.encoder.max_tokens}, the rest is left out")


def _folder_of_run(snapshot: Path) -> str | None:
    """The local folder that a run took its text encoder from: its config knows the whole path, which the snapshot does not tell."""
    run = run_of(snapshot)
    model = read_yaml(run.config).get("text_encoder", {}).get("params", {}).get("model") if run else None
    return model if model and Path(model).is_dir() else None


def generate_image(prompt: str, *, seed: int = 0, model: str | Path = "auto", truncation_psi: float = 1.0) -> Image.Image:
    """One picture of `prompt` by `model`: unless told the newest run in ./runs, and without one the pretrained model.

    To draw many, load a `Text2Image` once.
    """
    return Text2Image.load(model).generate(prompt, seeds=seed, truncation_psi=truncation_psi)[0]
