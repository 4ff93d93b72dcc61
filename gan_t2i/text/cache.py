"""Embeddings of captions, computed once and memory-mapped from disk afterwards.

A cache folder belongs to one encoder (its id, weights, tokenizer, pooling and max_tokens) and holds immutable shards. A shard is a
safetensors file named by the sha256 of its own bytes, so a damaged one is recognised, and two processes may write at once. It holds, for M
captions with T tokens in total, width E:

    tokens float16 [T, E], offsets int64 [M + 1], pooled float32 [M, E], lengths int64 [M] (uncut), captions uint8 (a JSON list)
"""

import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from gan_t2i.core import files
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.log import bar_options
from gan_t2i.core.weights import hash_weights
from gan_t2i.text.batch import TextBatch
from gan_t2i.text.encoder import SentenceEncoder

log = logging.getLogger(__name__)

FORMAT = 1
BATCH_SIZE = 128
SHARD_CAPTIONS = 8192  # about 80 MB of short captions; a run that is stopped loses at most one shard


@dataclass(frozen=True)
class Shard:
    """The tensors of one shard file, memory-mapped where they are large."""

    tokens: Tensor
    offsets: list[int]
    pooled: Tensor
    lengths: list[int]
    captions: list[str]


class TextCache:
    """The embeddings of a list of captions; `gather` takes indices into that list.

    captions: the list. width: E. max_tokens: the encoder's. cut: number of captions longer than that. longest: tokens of the longest caption.
    """

    def __init__(self, captions: Sequence[str], shards: Sequence[Shard], *, width: int, max_tokens: int) -> None:
        rows = {caption: (shard, row) for shard in shards for row, caption in enumerate(shard.captions)}
        self._rows = [rows[caption] for caption in captions]
        self.captions, self.width, self.max_tokens = list(captions), width, max_tokens
        lengths = [shard.lengths[row] for shard, row in self._rows]
        self.cut = sum(length > max_tokens for length in lengths)
        self.longest = max(lengths, default=0)

    @classmethod
    def build(cls, encoder: SentenceEncoder, captions: Sequence[str], *, folder: Path | None = None) -> "TextCache":
        """Read the embeddings that are cached, encode the rest, and warn of captions that were cut.

        `folder` holds the cache of this encoder alone; the default is the encoder's folder in the user's cache, for whose name the encoder may
        have to be loaded once more, by its library.
        Raises GanT2IError where the folder cannot be written or the encoder gives numbers that float16 cannot hold.
        """
        folder = folder or files.cache_dir() / "text" / cache_key(encoder)
        try:
            shards = _read_all(folder)
            known = {caption for shard in shards for caption in shard.captions}
            new = [caption for caption in dict.fromkeys(captions) if caption not in known]
            shards.extend(_encode_new(encoder, new, folder))
        except OSError as error:
            raise GanT2IError(
                f"the text cache {folder} cannot be written ({error.strerror or error}): "
                f"free some space, or set GAN_T2I_CACHE to another folder"
            ) from error
        cache = cls(captions, shards, width=encoder.width, max_tokens=encoder.max_tokens)
        if cache.cut:
            log.warning(
                f"{cache.cut:,} of {len(captions):,} captions are longer than {encoder.max_tokens} tokens (the longest has {cache.longest}) "
                f"and were cut there: shorten them or raise text_encoder.params.max_tokens"
            )
        return cache

    def __len__(self) -> int:
        return len(self.captions)

    @functools.cached_property
    def length(self) -> int:
        """Largest number of token embeddings of a caption."""
        return max((shard.offsets[row + 1] - shard.offsets[row] for shard, row in self._rows), default=0)

    def gather(self, ids: Tensor | Sequence[int]) -> TextBatch:
        """The captions `ids` [N] (indices into `captions`), padded to the longest of them; float32, copied."""
        rows = [self._rows[i] for i in (ids.tolist() if isinstance(ids, Tensor) else ids)]
        spans = [(shard.offsets[row], shard.offsets[row + 1]) for shard, row in rows]
        longest = max((end - start for start, end in spans), default=0)
        # Row by row: filling it at once would wake the thread pool, which costs milliseconds on a busy machine.
        tokens = torch.empty(len(rows), longest, self.width)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        pooled = torch.empty(len(rows), self.width)
        for i, ((shard, row), (start, end)) in enumerate(zip(rows, spans, strict=True)):
            tokens[i, : end - start] = shard.tokens[start:end]
            tokens[i, end - start :] = 0
            mask[i, : end - start] = True
            pooled[i] = shard.pooled[row]
        return TextBatch(tokens, mask, pooled)

    def pooled(self, ids: Sequence[int]) -> Tensor:
        """Only the pooled vectors of the captions `ids`, [N, E] float32, copied."""
        result = torch.empty(len(ids), self.width)
        for i, (shard, row) in enumerate(self._rows[i] for i in ids):
            result[i] = shard.pooled[row]
        return result


def cache_key(encoder: SentenceEncoder) -> str:
    """Name of the cache folder; anything that changes an embedding changes it."""
    parts = [FORMAT, encoder.id, encoder.revision, encoder.weights_hash, encoder.pipeline_hash, encoder.max_tokens]
    return f"{files.slug(encoder.id)}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"


def _encode_new(encoder: SentenceEncoder, captions: Sequence[str], folder: Path) -> Iterator[Shard]:
    """Encode `captions`, shortest first, and write a shard for every SHARD_CAPTIONS of them."""
    lengths = encoder.count_tokens(captions)
    rows: list[tuple[int, Tensor, Tensor]] = []
    left = len(captions)
    with tqdm(total=left, desc="encoding captions", unit="caption", disable=not captions, **bar_options()) as bar:
        for indices, batch in encoder.encode_chunks(captions, batch_size=BATCH_SIZE, lengths=lengths):
            for i, tokens, mask, pooled in zip(indices, batch.tokens.half(), batch.mask, batch.pooled, strict=True):
                rows.append((i, tokens[mask], pooled))
            bar.update(len(indices))
            left -= len(indices)
            if len(rows) >= SHARD_CAPTIONS or not left:
                yield _write(folder, [captions[i] for i, _, _ in rows], [lengths[i] for i, _, _ in rows], rows)
                rows = []


def _write(folder: Path, captions: list[str], lengths: list[int], rows: Sequence[tuple[int, Tensor, Tensor]]) -> Shard:
    tokens = torch.cat([row for _, row, _ in rows])  # [T, E]
    if not tokens.isfinite().all():
        raise GanT2IError("the text encoder gives token embeddings that float16 cannot hold; use another model")
    counts = torch.tensor([len(row) for _, row, _ in rows])
    tensors = {
        "tokens": tokens,
        "offsets": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        "pooled": torch.stack([pooled for _, _, pooled in rows]),
        "lengths": torch.tensor(lengths),
        "captions": torch.frombuffer(bytearray(json.dumps(captions).encode()), dtype=torch.uint8),
    }
    data = safetensors.torch.save(tensors)
    path = folder / f"shard_{hashlib.sha256(data).hexdigest()}.safetensors"
    with files.atomic_file(path) as temporary:
        temporary.write_bytes(data)
    return _map(path)


def _read_all(folder: Path) -> list[Shard]:
    """The intact shards of `folder`; a damaged one is reported and removed, so that its captions are encoded again."""
    shards = []
    for path in sorted(folder.glob("shard_*.safetensors")):
        try:
            if path.stem == f"shard_{hash_weights(path)}":
                shards.append(_map(path))
                continue
        except (OSError, SafetensorError):
            pass  # another process removed it, or it cannot be read
        log.info(f"the text cache's {path.name} is damaged; its captions are encoded again")
        path.unlink(missing_ok=True)
    return shards


def _map(path: Path) -> Shard:
    tensors = safetensors.torch.load_file(path)
    return Shard(
        tokens=tensors["tokens"],
        offsets=tensors["offsets"].tolist(),
        pooled=tensors["pooled"],
        lengths=tensors["lengths"].tolist(),
        captions=json.loads(tensors["captions"].numpy().tobytes()),
    )
