"""Lengths of captions in the text encoder's tokens, without a download or a network. The encoder itself (encoder.py) cuts captions."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gan_t2i.text import weights
from gan_t2i.text.encoder import PretrainedEncoder


@dataclass(frozen=True)
class Window:
    """The default encoder's window."""

    max_tokens: int
    """Length at which captions are cut, special tokens included."""
    counted_by: str
    """Method of counting, as one line for people."""
    count: Callable[[Sequence[str]], list[int]]
    """Captions -> number of tokens of each, uncut, special tokens included."""


def default_window() -> Window:
    """The window of the default encoder, counted by its tokenizer if that is on this machine, else in words and punctuation marks."""
    limit = PretrainedEncoder.Config.parse({}).max_tokens
    found = weights.find_local()
    if found is None or not (found.path / "tokenizer.json").is_file():
        return Window(
            limit, "words and punctuation marks, as the encoder's tokenizer is not on this machine: real counts are a little higher", _words
        )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(found.path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(captions: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(captions))]

    return Window(limit, f"the tokenizer of {found.source}", count)


def _words(captions: Sequence[str]) -> list[int]:
    return [len(re.findall(r"\w+|[^\w\s]", caption)) + 2 for caption in captions]  # [CLS] and [SEP]
