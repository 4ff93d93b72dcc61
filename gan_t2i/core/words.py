"""Words of captions and prompts, and of messages."""

import re


def split_words(text: str) -> list[str]:
    """Return the words of a caption or prompt in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def shorten(text: str, limit: int) -> str:
    """Return `text`, or where it has more than `limit` characters, its beginning with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def counted(number: int, noun: str) -> str:
    """Return the number and the noun, in the plural except for 1."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
