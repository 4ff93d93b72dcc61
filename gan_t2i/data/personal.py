"""Personal data in captions: e-mail addresses, web addresses, phone numbers and handles, found by their form and removed on demand.

Names of people have no form of their own: they are not found.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gan_t2i.data.readers.base import Reading
from gan_t2i.data.records import BadItems

# Bounded repeats keep the search linear in a caption's length. The order matters: part of an address looks like a handle.
_PATTERN = re.compile(
    r"""
      (?P<email>[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4})
    | (?P<url>(?:https?://|www\.)[^\s<>"']*[^\s<>"'.,;:!?)\]]|\b(?:[a-z0-9-]{1,63}\.){1,3}(?:com|org|net|info|io|de|fr|co\.uk)\b(?:/[^\s<>"']*)?)
    | (?P<phone>(?<![\w+.,])(?:\+|00)[1-9](?:[ ()./-]{0,2}\d){7,14}(?!\w)             # +49 30 1234567: international
        |(?<![\w+.,-])\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?![\w-])                          # (555) 123-4567: North American
        |(?<![\w+.,-])\(?0[1-9]\d{1,4}\)?[ /-]{1,3}(?:\d[ -]?){4,8}\d(?![\w-]))              # 030 / 123 45 67: with an area code
    | (?P<handle>(?<![\w@/.])@[A-Za-z0-9_](?:[\w.]{0,62}\w))
    """,
    re.VERBOSE | re.IGNORECASE,
)
KINDS = ("email", "url", "phone", "handle")
# A handle names a person in the sentence ("a portrait of @anna"); the others need no word in their place.
_REPLACEMENT = {"handle": "someone"}


def find_personal(caption: str) -> Counter[str]:
    """Count each of `KINDS` in the caption."""
    return Counter(str(match.lastgroup) for match in _PATTERN.finditer(caption))


def redact(caption: str) -> str:
    """Return the caption without e-mail and web addresses and phone numbers, and with "someone" for handles; it may be empty."""
    text = _PATTERN.sub(lambda match: _REPLACEMENT.get(str(match.lastgroup), ""), caption)
    text = re.sub(r"\(\s*\)|\[\s*\]|<\s*>", "", text)  # brackets around a removed address
    return re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split())).strip(" ,;:")


def redact_reading(reading: Reading, bad: BadItems) -> None:
    """Redact the captions of `reading` and the texts of its metadata, note the counts, and move records without a caption left to `bad`."""
    found: Counter[str] = Counter()
    records = []
    for record in reading.records:
        for caption in record.captions:
            found += find_personal(caption)
        captions = tuple(dict.fromkeys(filter(None, map(redact, record.captions))))
        if captions:
            records.append(replace(record, captions=captions, extra=_redact_value(record.extra)))
        else:
            bad.add("caption only personal data", record.where, "the caption is empty without personal data")
    reading.records = records
    reading.notes.append(f"redacted in captions: {', '.join(f'{found[kind]:,} {kind}' for kind in KINDS)}")


def _redact_value(value: Any) -> Any:
    # metadata is packed with the captions, and would give away what was removed from them
    if isinstance(value, str):
        return redact(value) if _PATTERN.search(value) else value
    if isinstance(value, Mapping):
        return {key: _redact_value(inner) for key, inner in value.items()}
    return [_redact_value(inner) for inner in value] if isinstance(value, list) else value
