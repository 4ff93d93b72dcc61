"""A model as a folder of ONNX files, which draws without torch: text encoder, generator, tokenizer, and a program that joins them.

N batch, L tokens, E width of the encoder, Z latent width, C channels, R resolution.
"""

import importlib.util
import json
import logging
import shlex
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan_t2i import __version__
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.files import atomic_folder, check_new
from gan_t2i.core.marks import XMP
from gan_t2i.core.runtime import torch_defaults
from gan_t2i.models.base import Generator
from gan_t2i.sampling.draw import latent
from gan_t2i.sampling.explore import features_of_first, most_kept
from gan_t2i.sampling.pipeline import Text2Image
from gan_t2i.sampling.publish import card_text, facts
from gan_t2i.text.batch import TextBatch
from gan_t2i.text.encoder import SentenceEncoder

FORMAT = 2
TOLERANCE = 1e-3
"""Largest difference of an image, in [-1, 1], to torch's."""
PACKED_TOLERANCE = 0.02
"""The same with packed weights."""
TRIED = ("a", "Two large red circles, left of a blue-green star")
log = logging.getLogger(__name__)

README = Path(__file__).with_name("onnx_readme.md")
PACKED = """\
Matrices are stored as whole numbers of 16 bits with a scale per column, which halves the files. Everything is computed in float32.
"""


class _Encoder(nn.Module):
    """Maps ids [N, L] and mask bool [N, L] to words [N, L, E] and sentence [N, E]."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.model = encoder.model

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model({"input_ids": ids, "attention_mask": mask.long()})
        return output["token_embeddings"] * mask[..., None], output["sentence_embedding"]


class _Generator(nn.Module):
    """Maps words, mask, sentence, z [N, Z], truncation [] and kept int64 [] to images [N, C, R, R]."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, words: Tensor, mask: Tensor, sentence: Tensor, z: Tensor, truncation: Tensor, kept: Tensor) -> Tensor:
        with features_of_first(self.generator, kept):
            return self.generator(z, TextBatch(words, mask, sentence), truncation).float()


@torch_defaults()
@torch.no_grad()
def export_onnx(model: Text2Image, folder: Path, *, name: str = "", packed: bool = False) -> None:
    """Write `model`, which must be on the CPU, to a new folder, and compare its images with torch's.

    `name` is the model's, by default that of its data. `packed` halves the files, and rounds the weights to 16 bits.

    Raises `UsageError` where the folder exists, and `GanT2IError` where a package is missing, or where the model cannot be written as ONNX.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise GanT2IError(f'ONNX needs the package {package}: pip install "gan-t2i[export]"')
    check_new(folder)
    log.info("writing text encoder and generator as ONNX, and comparing them with torch's: about a minute")
    name = name or model.info.data_name
    generator, encoder = model.generator, model.encoder
    features = encoder.model.preprocess(list(TRIED))
    ids, mask = features["input_ids"], features["attention_mask"].bool()
    words, sentence = _Encoder(encoder)(ids, mask)
    z = torch.cat([latent(generator, seed) for seed in range(len(TRIED))])
    text = {"words": words, "mask": mask, "sentence": sentence}
    with atomic_folder(folder) as place:
        _write(_Encoder(encoder), {"ids": ids, "mask": mask}, ["words", "sentence"], encoder.max_tokens, place / "encoder.onnx")
        inputs = {**text, "z": z, "truncation": torch.tensor(0.5), "kept": torch.tensor(0)}
        _write(_Generator(generator), inputs, ["image"], encoder.max_tokens, place / "generator.onnx")
        (place / "tokenizer.json").write_text(encoder.tokenizer_json(), encoding="utf-8")
        (place / "model.json").write_text(json.dumps(_description(model, name), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name("onnx_draw.py"), place / "draw.py")
        if packed:
            from gan_t2i.sampling.onnx_pack import pack  # onnx

            pack(place / "encoder.onnx")
            pack(place / "generator.onnx")
        difference = _compare(model, place, PACKED_TOLERANCE if packed else TOLERANCE)
        (place / "README.md").write_text(_readme(model, name, difference, packed=packed), encoding="utf-8")


def _write(module: nn.Module, inputs: Mapping[str, Tensor], outputs: list[str], max_tokens: int, path: Path) -> None:
    """Write `module` to an ONNX file that takes any number of captions, and of tokens up to `max_tokens`."""
    batch, length = torch.export.Dim("N"), torch.export.Dim("L", max=max_tokens)
    axes = {0: batch, 1: length}
    shapes = {name: {} if x.ndim == 0 else axes if name in ("ids", "mask", "words") else {0: batch} for name, x in inputs.items()}
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # paths on this machine, and lines of source
        program.save(path)
    except Exception as error:  # the exporter raises what it likes
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise GanT2IError(f"the model cannot be written as ONNX, in {path.stem}: {reason[0][:200]}") from error


def _compare(model: Text2Image, folder: Path, tolerance: float) -> float:
    """Return the largest difference of the written model's images to torch's: alone, in a batch, with and without truncation, and of a mix.

    Raises `GanT2IError` where it is above `tolerance`.
    """
    from gan_t2i.sampling.onnx_draw import Model  # onnxruntime

    largest = 0.0
    try:
        written = Model(folder)
        for prompts, psi, kept in ((TRIED, 1.0, 0), (TRIED[1:], 0.5, 0), ((*TRIED, *TRIED), 0.5, 0), (TRIED, 1.0, most_kept(model.generator))):
            seeds = range(len(prompts))
            z = torch.cat([latent(model.generator, seed) for seed in seeds])
            with features_of_first(model.generator, kept):
                drawn = model.generator(z, model.encoder.encode(prompts), psi).numpy()
            difference = float(np.abs(written.draw(prompts, seeds, psi, kept) - drawn).max())
            if not difference <= tolerance:
                raise GanT2IError(f"images differ by {difference:.2g} from torch's")
            largest = max(largest, difference)
    except Exception as error:  # onnxruntime has many of its own
        raise GanT2IError(f"the model cannot be written as ONNX: {' '.join(str(error).split())[:200]}") from error
    return largest


def _description(model: Text2Image, name: str) -> dict[str, Any]:
    """Return what a program needs to know, and what the model is."""
    card = model.info.card
    return {
        "format": FORMAT,
        "name": name,
        "files": {"encoder": "encoder.onnx", "generator": "generator.onnx", "tokenizer": "tokenizer.json"},
        "z_width": model.generator.z_width,
        "max_tokens": model.encoder.max_tokens,
        "resolution": model.info.resolution,
        "channels": 4 if model.info.has_alpha else 3,
        "most_kept": most_kept(model.generator),
        "example": card.example if card else "",
        "words": card.words if card else (),
        "styles": card.styles if card else (),
        "data_fingerprint": model.info.data_fingerprint,
        "fingerprint": model.fingerprint,
        "gan_t2i": __version__,
        "xmp": XMP,
    }


def _readme(model: Text2Image, name: str, difference: float, *, packed: bool) -> str:
    """Return the README of the folder: the card, how the files go together, how exact they are, and what the snapshot records."""
    card = model.info.card
    return README.read_text(encoding="utf-8").format(
        card=card_text(card) if card else f"# {name}",
        prompt=shlex.quote((card.example if card else "") or "a prompt"),
        facts=facts(model.info),
        z_width=model.generator.z_width,
        max_tokens=model.encoder.max_tokens,
        width=model.encoder.width,
        side=model.info.resolution,
        channels=4 if model.info.has_alpha else 3,
        most_kept=most_kept(model.generator),
        weights=PACKED if packed else "",
        tolerance=PACKED_TOLERANCE if packed else TOLERANCE,
        difference=difference,
    )
