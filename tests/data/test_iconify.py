"""Iconify's sets as data: names to captions, what is left out, and drawings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.packing import pack
from gan_t2i.data.readers import read
from gan_t2i.data.readers.base import Reading
from gan_t2i.data.settings import DataSettings

pytest.importorskip("resvg_py")
LEFT_HALF = '<path d="M0 0h4v8H0z" fill="red"/>'
ICONS: dict[str, Any] = {
    "prefix": "tiny",
    "icons": {
        "red-apple": {"body": LEFT_HALF},
        "key": {"body": '<path d="M0 0h8v8H0z" fill="currentColor"/>'},
        "wide": {"body": '<path d="M0 0h16v8H0z" fill="red"/>', "width": 16},
        "old": {"body": LEFT_HALF, "hidden": True},
        "waving-hand": {"body": LEFT_HALF},
        "waving-hand-dark-skin-tone": {"body": LEFT_HALF},
        "hand-tone3": {"body": LEFT_HALF},
        "flag-in-hole": {"body": LEFT_HALF},
        "flag-for-france": {"body": LEFT_HALF},
        "tricolore": {"body": LEFT_HALF},
    },
    "aliases": {
        "apple": {"parent": "red-apple"},
        "fruit": {"parent": "apple"},
        "secret": {"parent": "red-apple", "hidden": True},
        "apple-mirrored": {"parent": "apple", "hFlip": True},
        "apple-up": {"parent": "apple-mirrored", "rotate": 1},
    },
    "width": 8,
    "height": 8,
}
BESIDE = {
    "info.json": {"name": "Tiny Icons", "license": {"title": "CC BY 4.0", "spdx": "CC-BY-4.0"}},
    "metadata.json": {"categories": {"Food & Drink": ["red-apple"], "Broken": 1}},
    "chars.json": {"1f1eb-1f1f7": "tricolore", "1f34e": "apple", "f001": "key", "2": 3},
}


def write(folder: Path, icons: Any = ICONS, beside: dict[str, Any] = BESIDE) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in {"icons.json": icons, **beside}.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def captions(reading: Reading) -> dict[str, tuple[str, ...]]:
    return {record.where: record.captions for record in reading.records}


def test_names_aliases_and_categories_become_captions(tmp_path):
    reading = read(write(tmp_path) / "icons.json", DataSettings(on_bad="error"))  # what is not asked for is not bad
    assert captions(reading) == {
        "tiny:apple-mirrored": ("apple mirrored",),
        "tiny:apple-up": ("apple up",),
        "tiny:flag-in-hole": ("flag in hole",),
        "tiny:key": ("key",),
        "tiny:red-apple": ("red apple", "apple", "fruit", "red apple, food and drink"),
        "tiny:waving-hand": ("waving hand",),
        "tiny:wide": ("wide",),
    }
    assert not reading.bad
    assert reading.records[0].extra == {"style": "Tiny Icons", "licence": "CC-BY-4.0"}
    assert reading.notes == [
        "captions from the names of Tiny Icons, licence CC-BY-4.0",
        "not used in the format iconify: flags 2 (tiny:flag-for-france), skin tones 2 (tiny:hand-tone3), hidden icons 1 (tiny:old)",
    ]


def test_flags_and_skin_tones_are_read_on_demand(tmp_path):
    source = write(tmp_path)
    plain, flags, tones = (set(captions(read(source, DataSettings(**{key: True} if key else {})))) for key in ("", "flags", "skin_tones"))
    assert flags - plain == {"tiny:flag-for-france", "tiny:tricolore"}
    assert tones - plain == {"tiny:hand-tone3", "tiny:waving-hand-dark-skin-tone"}


def test_icons_are_drawn_whole_turned_and_in_the_colour_chosen(tmp_path):
    packed = pack(write(tmp_path / "set"), tmp_path / "packed", 16, DataSettings(foreground="#0000ff"), progress=False)
    left, right, top, bottom = (8, 2), (8, 13), (2, 8), (13, 8)
    red, white = [255, 0, 0], [255, 255, 255]
    pixels = {packed.captions[packed.caption_ids[index][0]]: packed.images[index] for index in range(len(packed))}

    def at(name: str, *places: tuple[int, int]) -> list[list[int]]:
        return [pixels[name][:, row, column].tolist() for row, column in places]

    assert at("red apple", left, right) == [red, white]
    assert at("apple mirrored", left, right) == [white, red]
    assert at("apple up", top, bottom) == [white, red]  # the mirrored one, a quarter to the right
    assert at("key", left) == [[0, 0, 255]]
    assert at("wide", left, right, top, bottom) == [red, red, white, white]


@pytest.mark.parametrize("place", ["", "noto", "zip"])
def test_a_package_is_read_as_a_folder_too(tmp_path, place):
    folder = write(tmp_path / (place or "set"))
    source = {"": folder, "noto": tmp_path, "zip": tmp_path / "a.zip"}[place]
    if place == "zip":
        shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path, "zip")
    reading = read(source)
    assert len(reading.records) == 7
    assert not reading.unused.keys() - {"flags", "skin tones", "hidden icons"}


def test_older_packages_have_everything_inside(tmp_path):
    inside = {**ICONS, "info": {"name": "Old", "license": "MIT"}, "categories": {"HomeTools": ["key"]}, "chars": {"1f511-fe0f": "key"}}
    reading = read(write(tmp_path, inside, {}).joinpath("icons.json").rename(tmp_path / "old.json"))
    assert captions(reading)["tiny:key"] == ("key", "key, home tools")
    assert reading.records[0].extra == {"style": "Old", "licence": "MIT"}


def test_broken_icons_are_counted_and_spoil_no_other(tmp_path):
    icons = {
        "a": {"body": LEFT_HALF},
        "b": {"body": "<g>"},
        "c": {"body": 1},
        "d": None,
        "e": {"body": LEFT_HALF, "width": "x"},
        "f": {"body": ""},
    }
    links = {"g": {"parent": "missing"}, "h": {"parent": "i"}, "i": {"parent": "h"}, "j": 1}
    packed = pack(write(tmp_path / "set", {**ICONS, "icons": icons, "aliases": links}, {}), tmp_path / "packed", 16, progress=False)
    assert packed.captions == ["a"]
    assert packed.report.bad == {"broken icon": 6, "unreadable image": 2, "empty image": 1}
    assert packed.report.first_bad[0] == ["tiny:c", "the icon has no drawing: its body or parent is missing"]
    broken = write(tmp_path / "b", {**ICONS, "icons": {"b": icons["b"]}, "aliases": {}}, {})
    with pytest.raises(GanT2IError, match=r"tiny:b.*mismatched tag"):
        pack(broken, tmp_path / "c", 16, DataSettings(on_bad="error"), progress=False)


@pytest.mark.parametrize(
    ("icons", "why"),
    [
        ('{"prefix": "tiny", "icons":', "icons.json is not JSON"),
        ({"icons": []}, "icons.json is not an Iconify set: it needs a prefix, and icons by their names"),
        ({"prefix": "tiny", "icons": {}}, "icons.json is not an Iconify set"),
        ([], "icons.json must be a JSON object"),
        ({"prefix": "tiny", "icons": {"a": {"body": "x", "hidden": True}}}, r"no usable pair .*hidden icons 1 \(tiny:a\)"),
    ],
)
def test_a_file_that_is_no_set_is_refused_in_a_sentence(tmp_path, icons, why):
    with pytest.raises(GanT2IError, match=why):
        read(write(tmp_path, icons, {}) / "icons.json")


def test_a_broken_file_beside_the_icons_is_counted(tmp_path):
    reading = read(write(tmp_path, beside={"info.json": "{", "metadata.json": {"suffixes": {"": "Plain"}}}) / "icons.json")
    assert captions(reading)["tiny:red-apple"] == ("red apple", "apple", "fruit")
    assert [(item.kind, item.where) for item in reading.bad] == [("unreadable table", "info.json")]
    assert reading.records[0].extra == {"style": "tiny", "licence": "unknown"}


def test_other_json_is_no_icon_set(tmp_path):
    (tmp_path / "captions_x.json").write_text('{"images": [], "annotations": []}', encoding="utf-8")
    with pytest.raises(GanT2IError, match="no usable pair"):
        read(tmp_path / "captions_x.json")
    write(tmp_path, {"home": "icon.svg"}, {})  # an application's list of its icons
    (tmp_path / "a.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">{LEFT_HALF}</svg>', encoding="utf-8")
    (tmp_path / "a.txt").write_text("a red half", encoding="utf-8")
    assert captions(read(tmp_path)) == {"a.txt": ("a red half",)}
