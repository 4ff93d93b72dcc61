"""The emoji of an installed colour font as a data set: a picture of each, with its names in the chosen languages.

Names come from the `emoji` library. Pillow renders the fonts, in the formats CBDT, sbix and COLR version 0. Sequences (a family, a heart on
fire) need Pillow's raqm layout; without it only emoji of a single code point are rendered.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import emoji
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, features
from tqdm import tqdm

from gan_t2i.core.config import nearest
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.core.files import atomic_folder, check_new

# Part of the name of cached copies: raise it when the same font and options give other pictures or captions.
VERSION = 1
SMALLEST, LARGEST = 16, 1024

# Known colour fonts, the best first; any other file with "emoji" in its name is tried after them.
_KNOWN_FONTS = ("notocoloremoji", "apple color emoji", "seguiemj", "twemoji", "openmoji-color", "joypixels", "emojione")
_FONT_SUFFIXES = (".ttf", ".otf", ".ttc")
# Bitmap fonts load only at the sizes that they contain, and do not list them.
_STRIKES = (160, 136, 128, 109, 96, 72, 64, 48, 40, 32, 20)
_MARGIN = 0.04  # of the picture's side, on each side
_PROBES = 64  # glyphs that measure how large this font renders
_INK, _OTHER_INK = (255, 0, 255), (0, 255, 0)
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff\U000e0020-\U000e007f]")  # regional indicators and tag characters
_SKIN_TONE = re.compile("[\U0001f3fb-\U0001f3ff]")
_VARIATION = "\N{VARIATION SELECTOR-16}"
_NO_CHARACTER = "\U000ffffe"


def make_emoji(
    out: Path,
    *,
    font: Path | None = None,
    size: int = 128,
    background: str = "white",
    languages: Sequence[str] = ("en",),
    flags: bool = False,
    skin_tones: bool = False,
    progress: bool = True,
) -> Path:
    """Render every emoji of `font` (by default the first colour font installed) into the folder `out`, with ``metadata.jsonl``.

    Pictures are `size` x `size` pixels on `background`, a colour name of Pillow or "transparent". `languages` are codes such as "en" and
    "zh", or "all". Flags of countries and regions, and skin tones, are rendered only on demand. Raises `UsageError` for a wrong option or
    where `out` is not empty, and `GanT2IError` where no font can be used. Returns `out`.
    """
    if not SMALLEST <= size <= LARGEST:
        raise UsageError(f"size = {size}: must be from {SMALLEST} to {LARGEST} pixels")
    colour = _parse_background(background)
    languages = _parse_languages(languages)
    check_new(out)
    opened = EmojiFont(font, size) if font is not None else EmojiFont(find_font(), size)
    wanted = list(_wanted(flags=flags, skin_tones=skin_tones))
    with atomic_folder(out) as folder, (folder / "metadata.jsonl").open("w", encoding="utf-8", newline="\n") as metadata:
        (folder / "images").mkdir()
        for text, glyph in _distinct(opened, tqdm(wanted, desc=opened.name, unit="emoji", disable=None if progress else True)):
            texts = names(text, languages)
            if not texts:
                continue
            codes = [f"{ord(character):04x}" for character in text]
            name = f"images/{'-'.join(codes)}.png"
            _centred(glyph, opened.cell, size, colour).save(folder / name, compress_level=4)
            unicode = " ".join(f"U+{code.upper()}" for code in codes)
            line = {"file_name": name, "text": texts, "emoji": text, "unicode": unicode, "font": opened.name}
            metadata.write(json.dumps(line, ensure_ascii=False) + "\n")
    return out


def joins_sequences() -> bool:
    """Return True if this Pillow can render emoji of several code points; if not, only single ones are made."""
    return bool(features.check("raqm"))


def _wanted(*, flags: bool, skin_tones: bool) -> Iterator[str]:
    """Yield the fully-qualified emoji, short ones first: a font that lacks a sequence may render its first part, which is a duplicate then."""
    qualified = (text for text, entry in emoji.EMOJI_DATA.items() if entry["status"] == emoji.STATUS["fully_qualified"])
    for text in sorted(qualified, key=lambda text: (len(text), text)):
        if (flags or not _FLAG.search(text)) and (skin_tones or not _SKIN_TONE.search(text)):
            yield text


def names(text: str, languages: Sequence[str] = ("en",)) -> list[str]:
    """Return the names of an emoji in these languages, English aliases included, each once; empty where it has none."""
    found: dict[str, str] = {}
    emoji.config.load_language(list(languages))  # does nothing for what is loaded already
    for language in languages:
        entry = emoji.EMOJI_DATA[text]
        raw = [entry[language]] if language in entry else []
        if language == "en":
            raw += entry.get("alias", [])
        for name in raw:
            readable = _readable(name, language)
            if readable:
                found.setdefault(readable.casefold(), readable)
    return list(found.values())


def _readable(name: str, language: str) -> str:
    """Turn ":red_apple:" into "red apple". A hyphen before a digit is a minus, and outside English it is part of the spelling."""
    words = name.strip(":").replace("_", " ")
    if language == "en":
        words = re.sub(r"(?<=\w)-(?=\w)", " ", words)
    return " ".join(words.split())


def _parse_languages(languages: Sequence[str]) -> list[str]:
    known = list(emoji.LANGUAGES)
    if "all" in languages:
        return known
    for language in languages:
        if language not in known:
            raise UsageError(f"unknown language {language!r} of emoji names; {nearest(language, [*known, 'all'])}")
    if not languages:
        raise UsageError("languages: name at least one")
    return list(dict.fromkeys(languages))


def _parse_background(background: str) -> tuple[int, ...] | None:
    if background == "transparent":
        return None
    try:
        return ImageColor.getrgb(background)[:3]
    except ValueError as error:
        raise UsageError(f"background = {background!r}: must be a colour such as white, #ffeecc or transparent") from error


class EmojiFont:
    """A colour font at the size that it renders best at. `cell` is the side in pixels of the square that its usual emoji fill."""

    def __init__(self, path: Path, size: int) -> None:
        """Raise `UsageError` where there is no such file, and `GanT2IError` where Pillow renders no colour emoji from it."""
        if not path.is_file():
            raise UsageError(f"font {path} does not exist")
        self._font = self._open(path, size)
        self.name = str(self._font.getname()[0] or path.stem)
        probes = [glyph for _, glyph in zip(range(_PROBES), self._singles(), strict=False)]
        self.cell = max(max(glyph.size) for glyph in probes)

    def _open(self, path: Path, size: int) -> ImageFont.FreeTypeFont:
        layout = ImageFont.Layout.RAQM if joins_sequences() else ImageFont.Layout.BASIC
        fault = ""
        for pixels in (2 * size, *_STRIKES):  # an outline font takes the first, a bitmap font only one of the others
            try:
                self._font = ImageFont.truetype(str(path), pixels, layout_engine=layout)
            except OSError as error:
                fault = str(error)
                continue
            fault = ""
            self._missing = self._ink(_NO_CHARACTER, _INK)
            if next(self._singles(), None) is not None:
                return self._font
        if fault and "pixel size" not in fault:
            raise GanT2IError(f"{path} is not a font that can be read ({fault})")
        raise GanT2IError(f"{path} has no colour emoji in a format that Pillow renders: CBDT, sbix or COLR version 0")

    def _singles(self) -> Iterator[Image.Image]:
        for text in _wanted(flags=False, skin_tones=False):
            if len(text.replace(_VARIATION, "")) == 1:
                glyph = self.draw(text)
                if glyph is not None:
                    yield glyph

    def draw(self, text: str) -> Image.Image | None:
        """Return the emoji cropped to its ink (mode RGBa: premultiplied colours), or None where the font has no colour glyph for it."""
        if self._font.layout_engine == ImageFont.Layout.BASIC:
            text = text.replace(_VARIATION, "")
            if len(text) > 1:
                return None
        # a sequence that the font does not join is rendered as its parts, side by side
        elif len(text) > 1 and self._font.getlength(text) > 1.5 * self._font.getlength(text[0]) > 0:
            return None
        glyph = self._ink(text, _INK)
        if glyph is None or glyph == self._missing:
            return None
        # pixels that change with the ink have no colour of their own
        other = self._ink(text, _OTHER_INK)
        if other is None or other.size != glyph.size or not _shared_colour(glyph, other):
            return None
        return glyph if glyph == other else self._ink(text, (0, 0, 0))

    def _ink(self, text: str, ink: tuple[int, int, int]) -> Image.Image | None:
        """Return the pixels of `text` on an empty canvas, cropped to their box; None where there are none."""
        left, top, right, bottom = (round(edge) for edge in self._font.getbbox(text))
        spare = 8 + (right - left + bottom - top) // 4  # some glyphs reach beyond the box that they report
        canvas = Image.new("RGBA", (right - left + 2 * spare, bottom - top + 2 * spare))
        try:
            ImageDraw.Draw(canvas).text((spare - left, spare - top), text, font=self._font, fill=ink, embedded_color=True)
        except OSError:  # a damaged glyph, or a format that this FreeType was built without
            return None
        box = canvas.getchannel("A").getbbox()
        if box is None:
            return None
        # blending into transparent black leaves premultiplied colours
        canvas = canvas.crop(box)
        return Image.frombytes("RGBa", canvas.size, canvas.tobytes())


def _shared_colour(a: Image.Image, b: Image.Image) -> bool:
    """Return True if some covered pixel is the same in both."""
    x, y = np.asarray(a), np.asarray(b)  # [H, W, 4]
    return bool(((x[..., :3] == y[..., :3]).all(axis=2) & (x[..., 3] >= 128)).any())


def _distinct(font: EmojiFont, texts: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
    """Yield the emoji of the font, of several that look the same the first."""
    seen: set[bytes] = set()
    for text in texts:
        glyph = font.draw(text)
        if glyph is None:
            continue
        digest = hashlib.sha256(repr(glyph.size).encode() + glyph.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            yield text, glyph


def _centred(glyph: Image.Image, cell: int, size: int, background: tuple[int, ...] | None) -> Image.Image:
    """Return a picture with the glyph in its centre; all share a scale, so that a small square stays small, except glyphs above `cell`."""
    room = size - 2 * max(1, round(_MARGIN * size))
    scale = room / max(cell, *glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    scaled = glyph.resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    picture = Image.new("RGBA", (size, size), (*background, 255) if background else (0, 0, 0, 0))
    picture.alpha_composite(scaled, ((size - width) // 2, (size - height) // 2))
    return picture.convert("RGB") if background else picture


def find_font() -> Path:
    """Return the first installed font that renders colour emoji; raises `GanT2IError` where there is none."""
    for path in _candidates():
        try:
            EmojiFont(path, SMALLEST)
        except GanT2IError:
            continue
        return path
    raise GanT2IError(
        "no colour emoji font is installed: install the package fonts-noto-color-emoji (Debian, Ubuntu), or name a font with --font FILE"
    )


def _candidates() -> list[Path]:
    """Return font files whose names suggest colour emoji: the known ones first, the user's before the system's."""
    ranked = []
    for order, folder in enumerate(_font_folders()):
        for root, _, files in os.walk(folder):
            for file in files:
                stem, suffix = os.path.splitext(file.lower())
                rank = next((rank for rank, known in enumerate(_KNOWN_FONTS) if stem.startswith(known)), len(_KNOWN_FONTS))
                if suffix in _FONT_SUFFIXES and (rank < len(_KNOWN_FONTS) or "emoji" in stem):
                    ranked.append((rank, order, Path(root) / file))
    return [path for _, _, path in sorted(ranked)]


def _font_folders() -> list[Path]:
    """Return the usual font folders of Linux, macOS and Windows."""
    home = Path(os.path.expanduser("~"))  # stays ~ where no home is known
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    system = [Path(folder) for folder in (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(os.pathsep) if folder]
    windows = [
        Path(os.environ[key]) / tail for key, tail in (("LOCALAPPDATA", "Microsoft/Windows/Fonts"), ("WINDIR", "Fonts")) if key in os.environ
    ]
    mac = [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    return [home / ".fonts", data / "fonts", *(folder / "fonts" for folder in system), *mac, *windows]
