"""Output of the frozen sentence encoder for a batch of captions. N batch, L tokens, E embedding width."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TextBatch:
    """Token embeddings with their mask and the pooled sentence vectors of N captions."""

    tokens: Tensor  # [N, L, E] float32 (a table of many: float16), zero where the mask is False
    mask: Tensor  # [N, L] bool, True at a real token
    pooled: Tensor  # [N, E] float32

    def __post_init__(self) -> None:
        n, length, width = self.tokens.shape
        if self.mask.shape != (n, length) or self.pooled.shape != (n, width) or self.mask.dtype != torch.bool:
            raise ValueError(
                f"TextBatch needs tokens [N, L, E], bool mask [N, L], pooled [N, E]; "
                f"got {tuple(self.tokens.shape)}, {self.mask.dtype} {tuple(self.mask.shape)}, {tuple(self.pooled.shape)}"
            )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, index: Tensor | slice) -> "TextBatch":
        """The captions selected by `index`, in its order."""
        return TextBatch(self.tokens[index], self.mask[index], self.pooled[index])

    def padded(self, length: int) -> "TextBatch":
        """The same captions with at least `length` token positions."""
        more = max(0, length - self.tokens.shape[1])
        return TextBatch(F.pad(self.tokens, (0, 0, 0, more)), F.pad(self.mask, (0, more)), self.pooled)

    def to(self, device: torch.device | str) -> "TextBatch":
        return TextBatch(self.tokens.to(device), self.mask.to(device), self.pooled.to(device))
