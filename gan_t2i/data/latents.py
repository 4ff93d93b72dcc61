"""Latents of a packed data set, encoded once and memory-mapped: an epoch encodes nothing.

N pictures, K latent channels, S side. A folder in the cache holds ``latents.f16`` (float16 [N, K, S, S], no header) and ``meta.json``.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gan_t2i.core.files import atomic_folder
from gan_t2i.core.log import bar_options
from gan_t2i.data.packing import META, Indices, PackedDataset

LATENTS = "latents.f16"
_CHUNK = 64  # pictures encoded at a time


class PackedLatents:
    """Latents of all pictures of a data set, in its order."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def gather(self, indices: Sequence[int] | Indices | Tensor) -> Tensor:
        """Return the latents at `indices` [B] as a new float16 tensor [B, K, S, S]."""
        return torch.from_numpy(self._values[np.asarray(indices, dtype=np.int64)])


def load_latents(dataset: PackedDataset, folder: Path, encode: Callable[[Tensor], Tensor]) -> PackedLatents:
    """Open the latents in `folder`, encoding all pictures on first use.

    `encode` maps uint8 pictures [B, C, R, R] as packed to latents [B, K, S, S]. `folder` names data set and autoencoder by their hashes.
    """
    meta = folder / META
    if not meta.is_file():
        try:
            _encode_all(dataset, folder, encode)
        except OSError:
            # another process may have been faster: its folder is there, and renaming ours over it fails
            if not meta.is_file():
                raise
    shape = tuple(json.loads(meta.read_text(encoding="utf-8"))["shape"])
    return PackedLatents(np.asarray(np.memmap(folder / LATENTS, dtype=np.float16, mode="r", shape=shape)))


def _encode_all(dataset: PackedDataset, folder: Path, encode: Callable[[Tensor], Tensor]) -> None:
    """Encode all pictures of `dataset` into the new `folder`."""
    shape: list[int] = []
    with atomic_folder(folder) as temporary:
        with (temporary / LATENTS).open("wb") as file:
            for part in tqdm(torch.arange(len(dataset)).split(_CHUNK), desc="latents", unit="batch", **bar_options()):
                latents = encode(dataset.gather_packed(part))
                shape = [len(dataset), *latents.shape[1:]]
                file.write(latents.to("cpu", torch.float16).contiguous().numpy().tobytes())
        (temporary / META).write_text(json.dumps({"shape": shape}), encoding="utf-8")
