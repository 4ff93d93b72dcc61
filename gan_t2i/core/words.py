"""Words of captions and prompts."""

import re


def split_words(text: str) -> list[str]:
    """Return the words of a caption or prompt in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())
