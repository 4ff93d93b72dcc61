"""Icon sets joined to one data set: the same things drawn in several styles.

Held out are things, which no style shows in training, and cells of style x thing: there the thing is seen in other styles, and the style on
other things.
"""

import io
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gan_t2i.core.config import nearest
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.files import atomic_folder, check_new, slug
from gan_t2i.core.threads import cores
from gan_t2i.data.decode import BadImageError, open_image
from gan_t2i.data.packing import map_in_threads
from gan_t2i.data.readers.base import Reading, clean_captions
from gan_t2i.data.readers.iconify import ICONS, Icon, IconSet, load_set, plain_code, words
from gan_t2i.data.readers.tables import json_value, table_text
from gan_t2i.data.readers.tree import FolderTree, Rejected
from gan_t2i.data.records import HELDOUT, TRAIN, BadItems, DataReport, Record
from gan_t2i.data.settings import DataSettings
from gan_t2i.data.splits import caption_hash

log = logging.getLogger(__name__)

SMALLEST, LARGEST = 16, 1024
HELD_SHARE = 0.04  # of the things, and of the cells
THING, CELL = "thing", "cell"  # what a held-out picture is
_TAGS = "data.json"
# Parts of a sequence, and words of a name, that make another member of the same family.
_PEOPLE = {"1f466", "1f467", "1f468", "1f469", "1f9d1", "1f9d2"}
_SIGNS = re.compile("1f3f[b-f]|200d|264[02]|27a1")  # skin tones, joiner, genders, direction
_ASIDE = re.compile("(wo)?m[ae]n|persons?|people|boys?|girls?|child|light|medium|dark|skin|tone[1-5]?")


@dataclass(frozen=True)
class _Drawing:
    style: str
    icons: IconSet
    icon: Icon

    @property
    def thing(self) -> str:
        """The emoji by its code points, or anything else by its name."""
        return self.icon.code or self.icon.name


@dataclass(frozen=True)
class _Tags:
    """emojibase-data: by code points, labels and tags, in each language; and the code points by English and Unicode names."""

    texts: Mapping[str, Sequence[str]]
    codes: Mapping[str, str]


def make_icons(
    out: Path,
    sets: Mapping[str, Path],
    *,
    tags: Path | None = None,
    languages: Sequence[str] = ("en",),
    size: int = 128,
    foreground: str = "black",
    flags: bool = False,
    skin_tones: bool = False,
    progress: bool = True,
) -> Path:
    """Draw the icons of `sets`, by style, into the folder `out`, transparent, with ``metadata.jsonl``; returns `out`.

    Its columns are text, style, thing, split, heldout (thing, cell or ""), and licence. Emoji are joined by code points, which a set without
    chars.json has from others by its names, and everything else by name. `tags` is a folder of the package emojibase-data; it gives labels and
    tags in `languages`, and what it does not name is left out. Raises `UsageError` for a wrong option, for a path that is no set, and where
    `out` is not empty, and `GanT2IError` where no icon is left.
    """
    if not SMALLEST <= size <= LARGEST:
        raise UsageError(f"size = {size}: must be from {SMALLEST} to {LARGEST} pixels")
    settings = DataSettings.parse({"foreground": foreground, "flags": flags, "skin_tones": skin_tones})
    if tags is None and list(languages) != ["en"]:
        raise UsageError("languages: the names of icons are English; --tags names a folder of emojibase-data, which has others")
    check_new(out)
    reading, bad = Reading(), BadItems()
    known = _read_tags(tags, languages) if tags is not None else None
    opened = {style: _open(path, bad) for style, path in sets.items()}
    drawings = _chosen(_joined(opened, known), settings, known, reading)
    for drawing, heldout in zip(drawings, held_out([(d.style, d.thing, d.icon.name) for d in drawings]), strict=True):
        texts = known.texts[drawing.thing] if known else [words(name) for name in (drawing.icon.name, *drawing.icon.aliases)]
        reading.keep(_record(drawing, texts, heldout, bad))
    reading.note_unused("icons")
    with atomic_folder(out) as folder:
        drawn = dict(_draw(folder, reading.records, size, settings, bad, progress))
        log.info(str(DataReport.of(list(drawn.values()), bad.items, [*reading.notes, *_counts([record.extra for record in drawn.values()])])))
        if not drawn:
            raise GanT2IError(f"no icon of {', '.join(sets)} is left to draw")
        lines = [{"file_name": name, "text": record.captions, **record.extra} for name, record in drawn.items()]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return out


def _open(path: Path, bad: BadItems) -> IconSet:
    file = path / ICONS if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"icon set {path} is neither {ICONS} nor a folder with it")
    return load_set(FolderTree(file.parent), file.name, bad)


def _read_tags(folder: Path, languages: Sequence[str]) -> _Tags:
    known = [path.parent.name for path in folder.glob(f"*/{_TAGS}")]
    if "en" not in known:
        raise UsageError(f"tags {folder} is not a folder of emojibase-data: it has no en/{_TAGS}")
    for language in languages:
        if language not in known:
            raise UsageError(f"unknown language {language!r} of {folder}; {nearest(language, known)}")
    texts: dict[str, list[str]] = defaultdict(list)
    codes: dict[str, str] = {}
    for language in dict.fromkeys(["en", *languages]):
        for code, label, tags in _emoji(folder, f"{language}/{_TAGS}"):
            texts[code] += [text for text in (label, ", ".join(tags)) if text and language in languages]
            if language == "en":
                codes.setdefault(_letters(label), code)
    if (folder / "meta/unicode-names.json").is_file():
        for code, name in _parse(folder, "meta/unicode-names.json").items():
            codes.setdefault(_letters(str(name)), plain_code(code))
    return _Tags({code: found for code, found in texts.items() if found}, codes)


def _emoji(folder: Path, name: str) -> Iterable[tuple[str, str, Sequence[str]]]:
    """Yield code points, label and tags of each emoji in each skin tone."""
    try:
        for entry in _parse(folder, name):
            for one in (entry, *entry.get("skins", ())):
                yield plain_code(one["hexcode"]), one["label"], one.get("tags", ())
    except (AttributeError, KeyError, TypeError) as error:
        raise GanT2IError(f"{folder / name} is not a list of emoji with hexcode and label") from error


def _parse(folder: Path, name: str) -> Any:
    try:
        return json_value(table_text(FolderTree(folder), name), str(folder / name))
    except Rejected as error:
        raise GanT2IError(error.why) from error


def _letters(name: str) -> str:
    """Return a name without what sets spell differently: hyphens, spaces and signs, and the flag "for" a country."""
    return re.sub(r"[\W_]+", "", re.sub("^flag-for-(flag-)?", "flag", name.lower()))


def _joined(sets: Mapping[str, IconSet], tags: _Tags | None) -> list[_Drawing]:
    """Return all icons; those without a code point have that of the same name in another set or in the tags."""
    drawings = [_Drawing(style, icons, icon) for style, icons in sets.items() for icon in icons.icons]
    codes: dict[str, str] = {}
    for drawing in drawings:
        for name in (drawing.icon.name, *drawing.icon.aliases) if drawing.icon.code else ():
            codes.setdefault(_letters(name), drawing.icon.code)
    codes = {**(tags.codes if tags else {}), **codes}
    result = []
    for drawing in drawings:
        names = map(_letters, (drawing.icon.name, *drawing.icon.aliases))
        code = drawing.icon.code or next((codes[name] for name in names if name in codes), "")
        result.append(replace(drawing, icon=replace(drawing.icon, code=code)))
    return result


def _chosen(drawings: Iterable[_Drawing], settings: DataSettings, tags: _Tags | None, reading: Reading) -> list[_Drawing]:
    chosen = []
    for drawing in drawings:
        kind = drawing.icon.passed_over(settings) or ("not in the tags" if tags and drawing.thing not in tags.texts else None)
        if kind:
            reading.pass_over(f"{drawing.style}:{drawing.icon.name}", kind)
        else:
            chosen.append(drawing)
    return chosen


def held_out(cells: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return for each (style, thing, name) whether it is held out, as `THING` or `CELL`, or "".

    What a family shares, as persons of every skin tone, would be seen of a thing held out alone; so families are held out. One of the cells of
    each family and one of each style always stays in training. All of it follows from hashes of the names.
    """
    family = _families((thing, name) for _, thing, name in cells)
    hashes = {(style, family[thing]): caption_hash(f"{style} x {family[thing]}") for style, thing, _ in cells}
    things = {one for one in family.values() if caption_hash(f"thing {one}") < HELD_SHARE}
    most: dict[str, float] = defaultdict(float)
    for (style, one), number in hashes.items():
        if one not in things:
            for line in (f"style {style}", f"family {one}"):
                most[line] = max(most[line], number)
    held = {
        (style, one)
        for (style, one), number in hashes.items()
        if number < HELD_SHARE and number < min(most[f"style {style}"], most[f"family {one}"])
    }
    seen = {thing for style, thing, _ in cells if (style, family[thing]) not in held}

    def kind(style: str, thing: str) -> str:
        if family[thing] in things:
            return THING
        return CELL if (style, family[thing]) in held and thing in seen else ""

    return [kind(style, thing) for style, thing, _ in cells]


def _families(things: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return a family for each thing of (thing, name): those of one kind of sequence, or of one name but for persons and skin tones."""
    above: dict[str, str] = {}

    def top(one: str) -> str:
        while above.setdefault(one, one) != one:
            one = above[one]
        return one

    members: dict[str, None] = {}
    for thing, name in things:
        members[thing] = None
        parts = [part for part in thing.split("-") if not _SIGNS.fullmatch(part)]
        base = thing if thing.startswith("1f1") else next((part for part in parts if part not in _PEOPLE), "person")
        plain = "-".join(word for word in name.split("-") if not _ASIDE.fullmatch(word)) or "person"
        for kin in (f"code {base}", f"name {plain}") if re.match("[0-9a-f]{2,6}(-|$)", thing) else (f"name {plain}",):
            first, second = sorted((top(thing), top(kin)))
            above[second] = first
    return {thing: top(thing) for thing in members}


def _record(drawing: _Drawing, texts: Iterable[str], heldout: str, bad: BadItems) -> Record:
    """Return the picture with each text in its style's words, and plain where no held-out cell would give a caption of training away."""
    styled = [(f"{text}, {drawing.style} style", text) for text in texts]
    captions = [caption for pair in styled for caption in (pair[:1] if heldout == CELL else pair)]
    record = drawing.icons.record(drawing.icon, ())
    split = HELDOUT if heldout else TRAIN
    extra = {"style": drawing.style, "thing": drawing.thing, "split": split, "heldout": heldout, "licence": drawing.icons.licence}
    return replace(record, captions=clean_captions(captions, record.where, bad), split=split, extra=extra)


def _draw(
    folder: Path, records: Sequence[Record], size: int, settings: DataSettings, bad: BadItems, progress: bool
) -> Iterable[tuple[str, Record]]:
    """Draw the icons into `folder`, and yield the names of the files with their records."""

    def png(record: Record) -> bytes:
        file = io.BytesIO()
        with open_image(record.image, size, settings.foreground) as image:
            image.save(file, "PNG", compress_level=4)
        return file.getvalue()

    pictures = map_in_threads(records, png, cores())
    bar = tqdm(records, desc="drawing", unit="icon", disable=None if progress else True)
    for number, (record, picture) in enumerate(zip(bar, pictures, strict=True)):
        if isinstance(picture, BadImageError):
            bad.add(picture.kind, record.where, str(picture))
            continue
        name = f"{slug(record.extra['style'])}/{number:05}-{slug(record.where.partition(':')[2])}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture)
        yield name, record


def _counts(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return notes on styles with their licences, things, and what is held out."""
    styles = Counter((line["style"], line["licence"]) for line in lines)
    things = Counter(thing for _, thing in {(line["style"], line["thing"]) for line in lines})
    shared = Counter(things.values())
    held = {kind: len({line["thing"] for line in lines if line["heldout"] == kind}) for kind in (THING, CELL)}
    cells = len({(line["style"], line["thing"]) for line in lines if line["heldout"] == CELL})
    return [
        *(f"{style}: {count:,} pictures, licence {licence}" for (style, licence), count in styles.items()),
        f"{len(things):,} things, by the number of styles: " + ", ".join(f"{styles} {count:,}" for styles, count in sorted(shared.items())),
        f"held out: {held[THING]:,} things from every style, and {cells:,} cells of style x thing",
    ]
