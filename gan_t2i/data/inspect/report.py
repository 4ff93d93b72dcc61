"""Report of ``gan-t2i data inspect``: everything worth knowing about a data set before training on it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.words import counted
from gan_t2i.data.inspect.captions import EXAMPLES, CaptionStats, describe_captions
from gan_t2i.data.inspect.pictures import EMPTY_CONTRAST, TINY, Duplicates, Found, PictureStats, describe_pictures
from gan_t2i.data.packing import PackedDataset, describe_transparency, is_packed
from gan_t2i.data.personal import KINDS
from gan_t2i.data.readers import read
from gan_t2i.data.records import BadItem, BadItems, DataReport, Record
from gan_t2i.data.settings import DataSettings

_PICTURES_SHOWN = 12

Section = tuple[str, str, list[str]]  # title, first line, further lines


@dataclass(frozen=True)
class Inspection:
    """Report on a data set; `str` gives the lines to show."""

    source: str
    settings: DataSettings  # as the pictures were, or will be, packed
    report: DataReport
    faults: dict[str, list[tuple[str, str]]]  # kind -> (where, why) of the first five
    captions: CaptionStats
    pictures: PictureStats
    examples: list[Record]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON: `DataReport`'s fields except its first_bad, and

        source: str. bad: {kind: count}. first_bad: {kind: [{where, why}], at most five}; `where` is file:line or a file.
        text: the fields of `CaptionStats`, first_personal as [{where, kinds}]. pictures: those of `PictureStats`.
        examples: [{where, captions: [str]}].
        """
        text = asdict(self.captions)
        text["first_personal"] = [{"where": where, "kinds": kinds} for where, kinds in self.captions.first_personal]
        return {
            "source": self.source,
            **asdict(self.report),
            "first_bad": {kind: [{"where": where, "why": why} for where, why in items] for kind, items in self.faults.items()},
            "text": text,
            "pictures": asdict(self.pictures),
            "examples": [{"where": record.where, "captions": list(record.captions)} for record in self.examples],
        }

    def __str__(self) -> str:
        return "\n".join(map(_text, self.sections()))

    def summary(self) -> str:
        """Return the counts, the notes and the first faults, and the transparent pictures if there are any."""
        return "\n".join([self.report.text(self.settings.holdout_fraction), *map(_text, self._transparency())])

    def sections(self) -> list[Section]:
        """Return the parts, for text and for the page."""
        summary, *more = replace(self.report, first_bad=()).text(self.settings.holdout_fraction).splitlines()
        result = [("data", summary, more)]
        for kind, items in self.faults.items():
            result.append((kind, f"{self.report.bad[kind]:,}" if kind in self.report.bad else "the first ones", _lines(items)))
        return [*result, *_picture_sections(self.pictures), *self._transparency(), *_caption_sections(self.captions)]

    def _transparency(self) -> list[Section]:
        count = self.pictures.transparent  # none in a folder that was packed without alpha, whose notes have it
        return [("transparent", describe_transparency(count, self.pictures.looked_at, self.settings), [])] if count else []


def inspect(
    source: Any,
    settings: DataSettings,
    count_tokens: Callable[[Sequence[str]], list[int]],
    window: int,
    counted_by: str,
    *,
    limit: int | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> Inspection:
    """Read `source`, anything that can be packed or a packed folder, and inspect all its captions and pictures.

    Args:
        source, settings: as for `packing.pack`.
        count_tokens, window, counted_by: lengths of captions in tokens, as in `text.token_counter.Window`.
        limit: number of pictures to inspect, evenly spaced over the data; None takes all.

    Errors as for `readers.read`, and `GanT2IError` where no picture can be decoded.
    """
    if isinstance(source, Path) and is_packed(source):
        dataset = PackedDataset.open(source)
        report, records = dataset.report, dataset.records()
        faults = {"left out when packed": list(report.first_bad)} if report.first_bad else {}
        pictures, usable = describe_pictures(_evenly_spaced(records, limit), settings, BadItems(), progress=progress, workers=workers)
        kept, settings = records, settings.model_copy(update={"alpha": dataset.channels == 4})
    else:
        reading = read(source, settings)
        bad = BadItems(settings.on_bad)
        chosen = _evenly_spaced(reading.records, limit)
        pictures, usable = describe_pictures(chosen, settings, bad, progress=progress, workers=workers)
        good = set(map(id, usable)) | ({*map(id, reading.records)} - {*map(id, chosen)})
        kept = [record for record in reading.records if id(record) in good]
        items = [*reading.bad, *bad.items]
        report, faults = DataReport.of(kept, items, reading.notes), first_of_each_kind(items)
    if pictures is None:
        where, why = next(iter(faults.values()), [("", "no picture")])[0]
        raise GanT2IError(f"no usable pair in {source}: no picture can be read (first fault: {where}: {why})")
    captions = describe_captions(kept, count_tokens, window, counted_by)
    return Inspection(str(source), settings, report, faults, captions, pictures, _evenly_spaced(usable, _PICTURES_SHOWN))


def first_of_each_kind(items: Iterable[BadItem]) -> dict[str, list[tuple[str, str]]]:
    """Return (where, why) of the first five items of each kind."""
    result: dict[str, list[tuple[str, str]]] = {}
    for item in items:
        found = result.setdefault(item.kind, [])
        if len(found) < EXAMPLES:
            found.append((item.where, item.why))
    return result


def _evenly_spaced(records: Sequence[Record], limit: int | None) -> list[Record]:
    """Return at most `limit` of the records, from the first to the last."""
    if limit is None or len(records) <= limit:
        return list(records)
    return [records[index * (len(records) - 1) // max(1, limit - 1)] for index in range(limit)]


def _text(section: Section) -> str:
    title, first, rest = section
    return f"{title}: {first}" + "".join(f"\n  {line}" for line in rest)


def _lines(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{first}: {second}" for first, second in pairs]


def _picture_sections(stats: PictureStats) -> list[Section]:
    side = stats.smallest_side
    sizes = ", ".join(
        f"{name} {values['least']} to {values['most']} (median {values['median']})"
        for name, values in (("width", stats.width), ("height", stats.height))
    )
    return [
        ("sizes", f"{sizes} pixels; 95% have no side below {side['p5']}; {counted(stats.looked_at, 'picture')}", []),
        _duplicate_section("exact duplicates", "the same file", stats.exact_duplicates),
        _duplicate_section("near duplicates", "nearly the same picture", stats.near_duplicates),
        _found_section("near-empty pictures", f"a single colour, within {EMPTY_CONTRAST} of 255", stats.near_empty),
        _found_section("tiny pictures", f"a side below {TINY} pixels", stats.tiny),
    ]


def _duplicate_section(title: str, meaning: str, found: Duplicates) -> Section:
    lines = ["; ".join(group) for group in found.first]
    return title, f"{found.surplus:,} surplus, in {found.groups:,} groups ({meaning})" if found.groups else "none", lines


def _found_section(title: str, meaning: str, found: Found) -> Section:
    return title, f"{found.count:,} ({meaning})" if found.count else "none", found.first


def _caption_sections(stats: CaptionStats) -> list[Section]:
    counts, tokens = stats.per_picture, stats.tokens
    personal = ", ".join(f"{stats.personal[kind]:,} {kind}" for kind in KINDS if kind in stats.personal)
    flips = ", ".join(f"{word} {count:,}" for word, count in stats.directions.items())
    return [
        ("captions", f"{stats.distinct:,} distinct; {counts['least']} to {counts['most']} per picture (mean {counts['mean']})", []),
        (
            "caption lengths",
            f"median {tokens['median']}, longest {tokens['longest']} tokens; {stats.cut:,} of {stats.distinct:,} would be cut at the encoder's "
            f"window of {stats.window}",
            [f"counted by {stats.counted_by}"],
        ),
        ("most frequent words", ", ".join(f"{word} {count:,}" for word, count in stats.words.items()), []),
        (
            "words that flips would falsify",
            f"{flips}; in {stats.direction_share:.1%} of the captions (training never flips)" if flips else "none",
            [],
        ),
        (
            "personal data in captions",
            f"{personal}; `gan-t2i data pack --redact` removes it" if personal else "none found",
            _lines(stats.first_personal),
        ),
    ]
