"""How long captions are for the text encoder, by its tokenizer alone: nothing is downloaded, and no network is loaded."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gan_t2i.text import weights
from gan_t2i.text.encoder import PretrainedEncoder

_SPECIAL = 2  # tokens that every caption has: its beginning and its end


@dataclass(frozen=True)
class Window:
    """The default encoder's window."""

    max_tokens: int
    """Captions are cut there, special tokens included."""
    counted_by: str
    """One line on what counts."""
    count: Callable[[Sequence[str]], list[int]]
    """Captions -> the number of tokens of each, uncut, special tokens included."""


def default_window() -> Window:
    """The window of the default encoder, counted by its tokenizer where its weights are on this machine, else by words and signs."""
    limit = PretrainedEncoder.Config.parse({}).max_tokens
    found = weights.find_local()
    if found is None or not (found.path / "tokenizer.json").is_file():
        return Window(limit, "words and signs, as the encoder's tokenizer is not on this machine: real counts are a little higher", _words)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(found.path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(captions: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(captions))]

    return Window(limit, f"the tokenizer of {found.source}", count)


def _words(captions: Sequence[str]) -> list[int]:
    return [len(re.findall(r"\w+|[^\w\s]", caption)) + _SPECIAL for caption in captions]
