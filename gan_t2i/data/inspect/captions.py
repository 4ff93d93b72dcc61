"""Statistics of a data set's captions: lengths, words, directions that a flip would falsify, personal data."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gan_t2i.data.personal import find_personal
from gan_t2i.data.records import Record

EXAMPLES = 5  # items of each kind that are named
_WORDS_SHOWN = 20
_CHUNK = 4096  # captions per call of the tokenizer


def words_of(caption: str) -> list[str]:
    """Return the words in lower case, each Chinese character as a word."""
    return re.findall(r"[\u4e00-\u9fff]|[^\W\d_\u4e00-\u9fff]+", caption.lower())


_COMMON = frozenset(words_of("a an and are as at be by for from has he her his in is it its of on or she that the their this to was were with"))
# A mirrored picture makes these false; of other languages, only words without another meaning.
DIRECTIONS = frozenset(
    words_of(
        "left right leftmost rightmost leftward leftwards rightward rightwards lefthand righthand clockwise counterclockwise anticlockwise "
        "rechts gauche droite izquierda derecha sinistra destra 左 右"
    )
)
COLOURS = frozenset(
    words_of(
        "black white grey gray red orange yellow green blue purple violet pink brown cyan magenta turquoise beige gold golden silver dark "
        "bright pale colourful colorful monochrome"
    )
)


@dataclass(frozen=True)
class CaptionStats:
    """Counts over the captions of the usable pictures; a caption of two pictures counts twice, except in `distinct` and the lengths."""

    distinct: int
    per_picture: dict[str, float]  # captions: least, mean, most
    tokens: dict[str, int]  # of the distinct captions: median, p95, longest; special tokens included
    window: int  # tokens at which the encoder truncates
    cut: int  # distinct captions that are longer
    counted_by: str
    words: dict[str, int]  # the most frequent ones, without common English words
    directions: dict[str, int]  # words that a flip would falsify
    direction_share: float  # share of the captions with such words
    colour_share: float  # share of the captions that name colours
    personal: dict[str, int]  # kind -> count
    first_personal: list[tuple[str, str]] = field(default_factory=list)  # (where, kinds), never the data themselves


def describe_captions(
    records: Sequence[Record], count_tokens: Callable[[Sequence[str]], list[int]], window: int, counted_by: str
) -> CaptionStats:
    """Return statistics of the captions of `records`, at least one; `count_tokens` gives the lengths of captions in tokens."""
    words: Counter[str] = Counter()
    personal: Counter[str] = Counter()
    first_personal: list[tuple[str, str]] = []
    with_direction = with_colour = total = 0
    for record in records:
        kinds: Counter[str] = Counter()
        for caption in record.captions:
            found = words_of(caption)
            words.update(found)
            with_direction += not DIRECTIONS.isdisjoint(found)
            with_colour += not COLOURS.isdisjoint(found)
            kinds += find_personal(caption)
            total += 1
        if kinds and len(first_personal) < EXAMPLES:
            first_personal.append((record.where, ", ".join(kinds)))
        personal += kinds
    distinct = list(dict.fromkeys(caption for record in records for caption in record.captions))
    lengths = sorted(length for start in range(0, len(distinct), _CHUNK) for length in count_tokens(distinct[start : start + _CHUNK]))
    counts = [len(record.captions) for record in records]
    return CaptionStats(
        distinct=len(distinct),
        per_picture={"least": min(counts), "mean": round(total / len(counts), 2), "most": max(counts)},
        tokens={"median": lengths[len(lengths) // 2], "p95": lengths[(len(lengths) - 1) * 95 // 100], "longest": lengths[-1]},
        window=window,
        cut=sum(length > window for length in lengths),
        counted_by=counted_by,
        words=dict(Counter({word: n for word, n in words.items() if word not in _COMMON}).most_common(_WORDS_SHOWN)),
        directions={word: n for word, n in words.most_common() if word in DIRECTIONS},
        direction_share=with_direction / total,
        colour_share=with_colour / total,
        personal=dict(personal.most_common()),
        first_personal=first_personal,
    )
