"""Result of reading a data source: usable records, the items left out, and a report that counts both."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.log import visible
from gan_t2i.core.words import counted

TRAIN = "train"
HELDOUT = "heldout"


@dataclass(frozen=True)
class LazyFile:
    """A picture within another file: a member of an archive, or a cell of a table."""

    name: str  # for messages
    read: Callable[[], bytes]  # the encoded picture; called from several threads, and may raise anything


@dataclass(frozen=True)
class Record:
    """One picture with at least one caption."""

    image: Path | LazyFile  # a path is absolute
    captions: tuple[str, ...]  # non-empty, whitespace normalised, no caption twice
    where: str  # for messages: "metadata.jsonl:12" or "cats/cat.txt"
    split: str | None = None  # "train", "heldout", or None where the data does not say
    extra: Mapping[str, Any] = field(default_factory=dict)  # every other key of the metadata


@dataclass(frozen=True)
class BadItem:
    """An item that was left out, and the reason."""

    kind: str
    where: str
    why: str


class BadItems:
    """Collect the items left out; with on_bad="error" the first one raises `GanT2IError`, with "skip" none does."""

    def __init__(self, on_bad: Literal["skip", "error"] = "skip") -> None:
        self.strict = on_bad == "error"
        self.items: list[BadItem] = []

    def add(self, kind: str, where: str, why: str) -> None:
        if self.strict:
            raise GanT2IError(f"{where}: {why}")
        self.items.append(BadItem(kind, where, why))


@dataclass(frozen=True)
class DataReport:
    """Counts of usable and unusable items; `str` gives the lines to show to a user."""

    pairs: int  # usable pictures, each with its captions
    captions: int  # captions of these pictures, a caption of two pictures counted twice
    heldout: int | None = None  # of the pairs; None before the split is made, where the data does not say
    dropped_captions: int = 0  # left out because the other side of the split has the same caption
    bad: Mapping[str, int] = field(default_factory=dict)  # kind -> count, the most frequent first
    first_bad: Sequence[tuple[str, str]] = ()  # (where, why) of the first five
    notes: Sequence[str] = ()  # choices that the reader made, such as the caption column

    def __str__(self) -> str:
        return self.text()

    def text(self, holdout: float | None = None) -> str:
        """Return the lines to show; `holdout` is the share that training holds out of data without a split, where that is known."""
        if self.heldout is not None:
            held = f"{counted(self.heldout, 'pair')} held out"
        else:
            held = "no split given" + (f", so training holds out {100 * holdout:.2g}%" if holdout is not None else "")
        lines = [f"{counted(self.pairs, 'usable pair')}, {counted(self.captions, 'caption')}; {held}", *self.notes]
        if self.dropped_captions:
            lines.append(f"{counted(self.dropped_captions, 'caption')} dropped because the other side of the split has the same")
        if self.bad:
            lines.append(f"{sum(self.bad.values()):,} left out: " + ", ".join(f"{kind} {count:,}" for kind, count in self.bad.items()))
            lines += [f"  {where}: {why}" for where, why in self.first_bad]
        return "\n".join(map(visible, lines))

    @classmethod
    def of(cls, records: Sequence[Record], items: Sequence[BadItem], notes: Sequence[str] = ()) -> Self:
        """Return the report on a reader's result, before any split."""
        return cls(
            pairs=len(records),
            captions=sum(len(record.captions) for record in records),
            heldout=sum(record.split == HELDOUT for record in records) if any(record.split for record in records) else None,
            bad=dict(Counter(item.kind for item in items).most_common()),
            first_bad=tuple((item.where, item.why) for item in items[:5]),
            notes=tuple(notes),
        )
