"""The emoji data set and the built-in sources, with a colour font that the test builds itself."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data import builtin
from gan_t2i.data.builtin import emoji_font
from gan_t2i.data.builtin.emoji_font import find_font, make_emoji, names
from gan_t2i.data.settings import DataSettings

APPLE, HEART, FIRE, STAR = "\U0001f34e", "\u2764\ufe0f", "\U0001f525", "\u2b50"
FRANCE, THUMB, LIGHT_THUMB = "\U0001f1eb\U0001f1f7", "\U0001f44d", "\U0001f44d\U0001f3fb"
CHARACTERS = {
    0x1F34E: "apple",
    0x2764: "heart",
    0x1F525: "fire",
    0x2B50: "star",
    0x1F511: "key",
    0x1F352: "cherries",
    0x1F44D: "thumb",
    0x1F3FB: "light",
    0x1F1EB: "f",
    0x1F1F7: "r",
    0x200D: "joiner",
    0xFE0F: "variation",
    0x41: "key",
}
# Boxes of the layers, in a cell of 1000: apple fills it, star is small and off its centre.
BOXES = {
    "apple": (0, 0, 1000, 1000),
    "heart": (0, 0, 1000, 800),
    "fire": (200, 0, 800, 1000),
    "star": (0, 0, 200, 200),
    "key": (0, 0, 900, 900),
    "cherries": (0, 0, 1000, 1000),
    "thumb": (300, 100, 700, 900),
    "light": (300, 100, 900, 900),
    "f": (0, 0, 500, 900),
    "r": (100, 0, 500, 900),
    "burning": (0, 100, 1000, 500),
    "france": (0, 200, 1000, 900),
    "lightthumb": (250, 150, 700, 900),
}
COLOURS = [(1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 1.0)]
LIGATURES = """
languagesystem DFLT dflt;
feature ccmp {
    sub heart variation joiner fire by burning;
    sub f r by france;
    sub thumb light by lightthumb;
} ccmp;
"""


def build_font(path: Path, *, colours: bool = True) -> Path:
    order = [".notdef", *dict.fromkeys([*CHARACTERS.values(), *BOXES])]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(CHARACTERS)
    builder.setupGlyf({name: draw_box(BOXES.get(name, (100, 0, 300, 100) if name == ".notdef" else None)) for name in order})
    builder.setupHorizontalMetrics({name: (0 if name in ("joiner", "variation") else 1000, 0) for name in order})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Test Emoji", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    addOpenTypeFeaturesFromString(builder.font, LIGATURES)
    if colours:
        blue = ("star", "burning")
        builder.setupCOLR({name: [(name, int(name in blue))] for name in BOXES if name != "key"}, version=0)  # the key has no colour
        builder.setupCPAL([COLOURS])
    builder.save(path)
    return path


def draw_box(box: tuple[int, int, int, int] | None) -> Any:
    pen = TTGlyphPen(None)
    if box is not None:
        left, bottom, right, top = box
        pen.moveTo((left, bottom))
        for point in [(left, top), (right, top), (right, bottom)]:
            pen.lineTo(point)
        pen.closePath()
    return pen.glyph()


@pytest.fixture(scope="module")
def font(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_font(tmp_path_factory.mktemp("fonts") / "TestEmoji.ttf")


def read_lines(folder: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["emoji"]: line for line in lines}


def single(lines: dict[str, Any]) -> set[str]:
    return {text for text in lines if len(text.replace("\ufe0f", "")) == 1}


needs_raqm = pytest.mark.skipif(not emoji_font.joins_sequences(), reason="this Pillow has no raqm layout")


def test_records_and_pictures(tmp_path: Path, font: Path) -> None:
    out = make_emoji(tmp_path / "set", font=font, size=50, progress=False)
    lines = read_lines(out)
    # The cherries look like the apple, which is first; the key has no colour; everything else is not in the font.
    assert single(lines) == {APPLE, HEART, FIRE, STAR, THUMB}
    assert lines[HEART] == {
        "file_name": "images/2764-fe0f.png",
        "text": names(HEART),
        "emoji": HEART,
        "unicode": "U+2764 U+FE0F",
        "font": "Test Emoji",
    }
    assert sorted(line["file_name"] for line in lines.values()) == sorted(f"images/{path.name}" for path in (out / "images").iterdir())
    with Image.open(out / lines[APPLE]["file_name"]) as picture:
        assert picture.mode == "RGB"
        assert picture.size == (50, 50)
        assert picture.getpixel((25, 25)) == (255, 0, 0)
        assert picture.getpixel((0, 0)) == (255, 255, 255)
        # The edge is a blend of red and white, never darker.
        assert min(picture.getchannel("R").tobytes()) >= 253
    with Image.open(out / lines[STAR]["file_name"]) as picture:
        assert picture.getpixel((25, 25)) == (0, 0, 255)


def test_pictures_are_centred_and_whole_and_share_a_scale(tmp_path: Path, font: Path) -> None:
    out = make_emoji(tmp_path / "set", font=font, size=100, background="transparent", progress=False)
    boxes = {}
    for text, line in read_lines(out).items():
        with Image.open(out / line["file_name"]) as picture:
            assert picture.mode == "RGBA"
            boxes[text] = picture.getchannel("A").getbbox()
    for left, top, right, bottom in boxes.values():
        assert abs(left + right - 100) <= 2
        assert abs(top + bottom - 100) <= 2
        assert min(left, top, 100 - right, 100 - bottom) >= 3
    assert abs(boxes[APPLE][2] - boxes[APPLE][0] - 92) <= 1
    assert abs(boxes[STAR][2] - boxes[STAR][0] - 0.2 * 92) <= 1.5


@needs_raqm
def test_sequences_flags_and_skin_tones(tmp_path: Path, font: Path) -> None:
    plain = read_lines(make_emoji(tmp_path / "plain", font=font, size=16, progress=False))
    # Joined in the font; "heart, joiner, bandage" and all others are not.
    assert set(plain) - single(plain) == {HEART + "\u200d" + FIRE}
    every = read_lines(make_emoji(tmp_path / "every", font=font, size=16, flags=True, skin_tones=True, progress=False))
    assert set(every) - set(plain) == {FRANCE, LIGHT_THUMB}


def test_single_emoji_without_raqm(tmp_path: Path, font: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji_font, "joins_sequences", lambda: False)
    lines = read_lines(make_emoji(tmp_path / "set", font=font, size=16, flags=True, progress=False))
    assert set(lines) == {APPLE, HEART, FIRE, STAR, THUMB}


def test_names() -> None:
    assert names(APPLE) == ["red apple", "apple"]
    assert names("\U0001f44e")[0] == "thumbs down"
    assert "-1" in names("\U0001f44e")
    assert names("\U0001f471\u200d\u2642\ufe0f")[1] == "blond haired man"
    both = names(APPLE, ["en", "de"])
    assert both[:2] == ["red apple", "apple"]
    assert "roter apfel" in both
    assert names(APPLE, ["zh"]) == ["红苹果"]


def test_same_bytes_every_time(tmp_path: Path, font: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        out = make_emoji(tmp_path / name, font=font, size=20, progress=False)
        content = [path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()]
        digests.add(hashlib.sha256(b"".join(content)).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": "nothing"}, "must be a colour"),
        ({"languages": ["klingon"]}, "unknown language"),
        ({"languages": []}, "at least one"),
        ({"size": 4}, "must be from"),
        ({"font": Path("missing.ttf")}, "does not exist"),
    ],
)
def test_refuses_wrong_options(tmp_path: Path, font: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_emoji(tmp_path / "set", **{"font": font, "progress": False, **options})
    assert not list(tmp_path.iterdir())


def test_refuses_a_file_that_is_not_a_colour_font(tmp_path: Path) -> None:
    text = tmp_path / "text.ttf"
    text.write_text("not a font")
    with pytest.raises(GanT2IError, match="is not a font"):
        make_emoji(tmp_path / "set", font=text, progress=False)
    plain = build_font(tmp_path / "plain.ttf", colours=False)
    with pytest.raises(GanT2IError, match="no colour emoji"):
        make_emoji(tmp_path / "set", font=plain, progress=False)
    with pytest.raises(UsageError, match="not empty"):
        make_emoji(tmp_path, font=plain, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.ttf", "text.ttf"]


def test_finds_an_installed_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji_font, "_font_folders", lambda: [tmp_path / "none", tmp_path])
    with pytest.raises(GanT2IError, match="fonts-noto-color-emoji"):
        find_font()
    (tmp_path / "deep").mkdir()
    build_font(tmp_path / "NotoColorEmoji-plain.ttf", colours=False)  # the better name, but nothing in it
    build_font(tmp_path / "sans.ttf")  # not an emoji font by its name
    wanted = build_font(tmp_path / "deep/SomeEmoji.ttf")
    assert find_font() == wanted


def test_builtin_emoji_are_made_once(tmp_path: Path, font: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path))
    monkeypatch.setattr(emoji_font, "find_font", lambda: font)
    folder = builtin.resolve_source("emoji", 16)
    assert builtin.resolve_source("emoji", 16) == folder
    assert len(said) == 1
    assert APPLE in read_lines(folder)
    assert builtin.resolve_source("emoji", 32) != folder
    transparent = builtin.resolve_source("emoji", 16, DataSettings(alpha=True))
    name = read_lines(folder)[APPLE]["file_name"]
    with Image.open(folder / name) as opaque, Image.open(transparent / name) as clear:
        assert (opaque.mode, clear.mode) == ("RGB", "RGBA")
        assert clear.getpixel((0, 0))[3] == 0
        assert clear.getpixel((8, 8)) == (*opaque.getpixel((8, 8)), 255)


def test_builtin_shapes_survive_a_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_t2i.data.builtin import shapes

    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path))
    real = shapes.make_shapes

    def slower(out: Path, *, kind: shapes.ShapeSet, size: int) -> Path:
        real(out, count=3, size=size, progress=False)  # another process finishes first
        return real(out, count=3, size=size, progress=False)

    monkeypatch.setattr(shapes, "make_shapes", slower)
    folder = builtin.resolve_source("shapes", 16)
    assert len((folder / "metadata.jsonl").read_text().splitlines()) == 3
    assert folder.parent == tmp_path / "datasets"


def test_a_failure_is_not_taken_for_a_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_t2i.data.builtin import shapes

    def full(out: Path, *, kind: shapes.ShapeSet, size: int) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("GAN_T2I_CACHE", str(tmp_path))
    monkeypatch.setattr(shapes, "make_shapes", full)
    with pytest.raises(OSError, match="No space"):
        builtin.resolve_source("shapes", 16)


def test_any_other_source_is_a_path() -> None:
    assert builtin.resolve_source("some/folder", 64) == Path("some/folder")
    assert builtin.resolve_source("./shapes", 64) == Path("shapes")
    assert builtin.resolve_source("~/set", 64) == Path.home() / "set"
    assert builtin.resolve_source("~old set", 64) == Path("~old set")
    with pytest.raises(UsageError, match="data is an empty name"):
        builtin.resolve_source("", 64)
    assert {"shapes", "basic-shapes", "emoji"} == builtin.BUILTIN
