"""Icon sets of Iconify: icons.json with the drawings as SVG, and info.json, metadata.json and chars.json beside it or inside, where there are
any. https://iconify.design/docs/types/iconify-json.html
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.readers.base import Reading, Source, clean_captions, decoded
from gan_t2i.data.readers.tables import json_object
from gan_t2i.data.readers.tree import FileSource, Rejected
from gan_t2i.data.records import BadItems, LazyFile, Record
from gan_t2i.data.settings import DataSettings
from gan_t2i.data.svg import SUFFIX

ICONS = "icons.json"
_BROKEN = "broken icon"
_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}  # the defaults of Iconify
_PRIVATE = re.compile("e[0-9a-f]{3}|f[0-8][0-9a-f]{2}|f[0-9a-f]{4}|10[0-9a-f]{4}")  # code points that mean something else in each set
_SKIN_TONE = re.compile("1f3f[b-f]")
_FLAG = re.compile("1f1(e[6-9a-f]|f)|e00[2-7]")  # regional indicators and tag characters
_SKIN_TONE_NAME, _FLAG_NAME = re.compile("skin-tone|-tone[1-5]"), re.compile("flag-(?!in-hole)")
_CHANGES = ("rotate", "hFlip", "vFlip", *_BOX, "body")  # of an alias that is a drawing of its own


@dataclass(frozen=True)
class Icon:
    """One drawing of a set."""

    name: str
    aliases: tuple[str, ...]
    code: str  # `plain_code` of its emoji; "" where it is none
    category: str
    properties: Mapping[str, Any]  # of Iconify

    @property
    def captions(self) -> list[str]:
        """The names in words, and the first with its category."""
        texts = [words(name) for name in (self.name, *self.aliases)]
        group = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.category).lower().replace("&", "and")  # some sets write FoodDrinks
        return [*texts, f"{texts[0]}, {group}"] if group else texts

    def passed_over(self, settings: DataSettings) -> str | None:
        """Return what keeps the icon out of the data, if anything does."""
        if self.properties.get("hidden"):
            return "hidden icons"
        if not settings.skin_tones and (_SKIN_TONE.search(self.code) or _SKIN_TONE_NAME.search(self.name)):
            return "skin tones"
        return "flags" if not settings.flags and (_FLAG.search(self.code) or _FLAG_NAME.match(self.name)) else None

    def svg(self) -> bytes:
        """Return the drawing in a square, so that no crop cuts it; raises ValueError for a size that is none."""
        left, top, width, height = box = [self.properties.get(key, default) for key, default in _BOX.items()]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in box):
            raise ValueError("the icon's left, top, width and height must be numbers")
        side, x, y = max(width, height), left + width / 2, top + height / 2
        flips = [-1 if self.properties.get(key) else 1 for key in ("hFlip", "vFlip")]
        turn = f"translate({x} {y}) rotate({90 * self.properties.get('rotate', 0)}) scale({flips[0]} {flips[1]}) translate({-x} {-y})"
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        square = f"{x - side / 2} {y - side / 2} {side} {side}"
        return f'<svg {names} viewBox="{square}"><g transform="{turn}">{self.properties["body"]}</g></svg>'.encode()


@dataclass(frozen=True)
class IconSet:
    """A set, hidden icons included."""

    prefix: str
    title: str
    licence: str  # by SPDX, where the set says so
    icons: Sequence[Icon]

    def record(self, icon: Icon, captions: tuple[str, ...]) -> Record:
        """Return the icon as a picture with `captions`, drawn when it is read."""
        where = f"{self.prefix}:{icon.name}"
        return Record(LazyFile(f"{icon.name}{SUFFIX}", icon.svg), captions, where, None, {"style": self.title, "licence": self.licence})


def words(name: str) -> str:
    """Turn "red-apple" into "red apple"."""
    return " ".join(re.split("[-_ ]+", name))


def plain_code(code: str) -> str:
    """Return the code points of an emoji in the spelling that stands for all: in lower case, without variation selectors."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def find_iconify(tree: FileSource, named: Sequence[str] | None) -> Sequence[str]:
    """Find icons.json in the folder and its subfolders, or files that are named so or begin as such a set does."""
    if named is None:
        return [name for name in tree.names if name.count("/") <= 1 and PurePosixPath(name).name == ICONS and _begins_as_set(tree, name)]
    return [name for name in named if name == ICONS or (name.lower().endswith(".json") and _begins_as_set(tree, name))]


def _begins_as_set(tree: FileSource, name: str) -> bool:
    try:
        return re.match(r'\s*\{\s*"prefix"', decoded(tree.read(name, 4095))) is not None
    except Rejected:
        return False


def read_iconify(source: Source) -> Reading:
    """Read the icons of each set in the order of their names."""
    return source.read_each(_read_icons)


def _read_icons(source: Source, name: str) -> Reading:
    icons = load_set(source.tree, name, source.bad)
    reading = Reading(notes=[f"captions from the names of {icons.title}, licence {icons.licence}"])
    for icon in icons.icons:
        reading.images += 1
        if kind := icon.passed_over(source.settings):
            reading.pass_over(f"{icons.prefix}:{icon.name}", kind)
        else:
            reading.keep(icons.record(icon, clean_captions(icon.captions, f"{icons.prefix}:{icon.name}", source.bad)))
    return reading


def load_set(tree: FileSource, name: str, bad: BadItems) -> IconSet:
    """Read a set; icons that are none go to `bad`. Raises `GanT2IError` for a file that is no set."""
    content = json_object(tree, name)
    prefix, icons = content.get("prefix"), content.get("icons")
    if not isinstance(prefix, str) or not isinstance(icons, dict) or not icons:
        raise GanT2IError(f"{name} is not an Iconify set: it needs a prefix, and icons by their names")
    beside = partial(_beside, tree, name, content, bad)
    info, chars, categories = beside("info", "info.json"), beside("chars", "chars.json"), beside("categories", "metadata.json")
    licence = info.get("license") or "unknown"
    codes: dict[Any, str] = {}
    for code, of in chars.items():
        code = plain_code(code)
        if not _PRIVATE.fullmatch(code.split("-")[0]):
            codes.setdefault(of if isinstance(of, str) else None, code)
    category_of = {icon: str(title) for title, members in categories.items() if isinstance(members, list) for icon in map(str, members)}
    drawings, aliases = _resolve(content, prefix, bad)
    return IconSet(
        prefix,
        str(info.get("name") or prefix),
        str(licence.get("spdx") or licence.get("title")) if isinstance(licence, dict) else str(licence),
        [
            Icon(
                drawing,
                tuple(aliases.get(drawing, ())),
                next((codes[each] for each in (drawing, *aliases.get(drawing, ())) if each in codes), ""),
                category_of.get(drawing, ""),
                properties,
            )
            for drawing, properties in sorted(drawings.items())
        ],
    )


def _beside(tree: FileSource, name: str, content: Mapping[str, Any], bad: BadItems, key: str, file: str) -> Mapping[str, Any]:
    """Return the part `key` of the set, which older packages have inside, and others in `file` or in its part `key`."""
    part = content.get(key)
    path = PurePosixPath(name).with_name(file).as_posix()
    if part is None and tree.is_file(path):
        try:
            part = json_object(tree, path)
        except GanT2IError as error:
            bad.add("unreadable table", path, str(error))
        else:
            part = part.get(key, part if file != "metadata.json" else None)
    return part if isinstance(part, dict) else {}


def _resolve(content: Mapping[str, Any], prefix: str, bad: BadItems) -> tuple[dict[str, Mapping[str, Any]], dict[str, list[str]]]:
    """Return the properties of each drawing, and the further names of those that have any."""
    icons, links = content["icons"], content.get("aliases")
    links = links if isinstance(links, dict) else {}
    drawings: dict[str, Mapping[str, Any]] = {}
    aliases: dict[str, list[str]] = {}
    for name in (*icons, *(name for name in links if name not in icons)):
        chain = list(_chain(name, icons, links))
        properties = {key: content[key] for key in _BOX if key in content}
        for _, part in reversed(chain):
            properties |= part
        if not chain or not isinstance(properties.get("body"), str):
            bad.add(_BROKEN, f"{prefix}:{name}", "the icon has no drawing: its body or parent is missing")
        elif len(chain) > 1 and not any(part.get(key) for _, part in chain[:-1] for key in _CHANGES):
            if not properties.get("hidden"):
                aliases.setdefault(chain[-1][0], []).append(name)
        else:
            turns = [part.get("rotate", 0) for _, part in chain]
            flips = {key: sum(bool(part.get(key)) for _, part in chain) % 2 for key in ("hFlip", "vFlip")}
            rotate = sum(turn for turn in turns if isinstance(turn, int)) % 4
            drawings[name] = {**properties, **flips, "rotate": rotate}
    return drawings, aliases


def _chain(name: str, icons: Mapping[str, Any], links: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield an icon by its names: an alias, its parent and so on, to the drawing; nothing where it leads to none."""
    chain: list[tuple[str, Mapping[str, Any]]] = []
    while name not in (seen for seen, _ in chain):
        part = icons.get(name, links.get(name))
        if not isinstance(part, dict):
            return
        chain.append((name, part))
        if name in icons:
            yield from chain
            return
        name = str(part.get("parent"))
