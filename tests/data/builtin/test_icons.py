"""Icon sets joined to one data set: what is the same thing, what it is called, and what is held out."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from gan_t2i.cli.main import command
from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data.builtin import icons
from gan_t2i.data.builtin.icons import CELL, THING, held_out, make_icons
from gan_t2i.data.packing import pack
from gan_t2i.data.readers import read

pytest.importorskip("resvg_py")
RED, BLUE, OWN = ({"body": f'<path d="M0 0h8v8H0z" fill="{colour}"/>'} for colour in ("red", "blue", "currentColor"))
APPLE, HAND, DARK_HAND, FRANCE = "1f34e", "1f44b", "1f44b-1f3ff", "1f1eb-1f1f7"
Lines = dict[tuple[str, str], dict[str, Any]]


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_set(folder: Path, drawings: dict[str, Any], chars: dict[str, str] | None = None, **more: Any) -> Path:
    info = {"name": folder.name, "license": {"spdx": "MIT"}}
    content = {"prefix": folder.name, "info": info, "icons": drawings, "width": 8, "height": 8, **more}
    write_json(folder / "icons.json", content)
    if chars:
        write_json(folder / "chars.json", chars)
    return folder


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Path]:
    """Two sets of emoji, one with code points, and one by their names; "own" is in no tags."""
    coded = {
        "red-apple": RED,
        "waving-hand": RED,
        "waving-hand-dark-skin-tone": RED,
        "flag-france": RED,
        "own": OWN,
        "gone": {**RED, "hidden": True},
    }
    chars = {"1F34E": "red-apple", "1f44b": "waving-hand", DARK_HAND: "waving-hand-dark-skin-tone", "1f1eb-1f1f7": "flag-france"}
    named = {"fruit": BLUE, "wavinghand": BLUE, "flag-for-france": BLUE}
    return {
        "noto": write_set(tmp_path / "coded", coded, chars),
        "flat blue": write_set(tmp_path / "named", named, aliases={"red-apple": {"parent": "fruit"}}) / "icons.json",
    }


@pytest.fixture
def tags(tmp_path: Path) -> Path:
    def emoji(labels: tuple[str, str, str], apple: list[str]) -> list[dict[str, Any]]:
        hand = {"hexcode": "1F44B", "label": labels[1], "skins": [{"hexcode": "1F44B-1F3FF", "label": f"{labels[1]}: dark skin tone"}]}
        return [
            {"hexcode": "1F34E", "label": labels[0], "tags": apple},
            {**hand, "tags": ["wave"]},
            {"hexcode": "1F1EB-1F1F7", "label": labels[2]},
        ]

    folder = tmp_path / "emojibase-data"
    write_json(folder / "en/data.json", emoji(("red apple", "waving hand", "flag: France"), ["fruit", "red"]))
    write_json(folder / "zh/data.json", emoji(("红苹果", "挥手", "旗: 法国"), ["水果"]))
    return folder


def made(out: Path, sets: dict[str, Path], **options: Any) -> Lines:
    make_icons(out, sets, size=16, progress=False, **options)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return {(line["style"], line["thing"]): line for line in lines}


def test_sets_are_joined_by_code_point_and_by_name(tmp_path, sets, tags, caplog):
    caplog.set_level("INFO")
    lines = made(tmp_path / "out", sets, tags=tags)
    assert set(lines) == {("noto", APPLE), ("noto", HAND), ("flat blue", APPLE), ("flat blue", HAND)}
    line = lines["flat blue", APPLE]
    assert line == {
        "file_name": "flat-blue/00002-fruit.png",
        "text": ["red apple, flat blue style", "red apple", "fruit, red, flat blue style", "fruit, red"],
        "style": "flat blue",
        "thing": APPLE,
        "split": "train",
        "heldout": "",
        "licence": "MIT",
    }
    with Image.open(tmp_path / "out" / line["file_name"]) as picture:
        assert (picture.mode, picture.size, picture.getpixel((8, 8))) == ("RGBA", (16, 16), (0, 0, 255, 255))
    said = caplog.text
    assert "flags 2 (noto:flag-france), hidden icons 1 (noto:gone), not in the tags 1 (noto:own), skin tones 1 (noto:waving" in said
    assert "noto: 2 pictures, licence MIT" in said
    assert "2 things, by the number of styles: 2 2" in said
    assert "held out: 0 things from every style, and 0 cells of style x thing" in said


def test_flags_skin_tones_languages_and_a_colour_on_demand(tmp_path, sets, tags):
    lines = made(tmp_path / "out", sets, tags=tags, flags=True, skin_tones=True, languages=["en", "zh"])
    assert {thing for _, thing in lines} == {APPLE, HAND, DARK_HAND, FRANCE}
    assert lines["flat blue", FRANCE]["text"][:2] == ["flag: France, flat blue style", "flag: France"]
    assert lines["noto", APPLE]["text"][4:] == ["红苹果, noto style", "红苹果", "水果, noto style", "水果"]
    lines = made(tmp_path / "zh", sets, tags=tags, languages=["zh"])
    assert lines["noto", HAND]["text"] == ["挥手, noto style", "挥手", "wave, noto style", "wave"]
    lines = made(tmp_path / "own", sets, foreground="lime")
    with Image.open(tmp_path / "own" / lines["noto", "own"]["file_name"]) as picture:
        assert picture.getpixel((8, 8)) == (0, 255, 0, 255)


def test_without_tags_the_names_are_captions(tmp_path, sets):
    lines = made(tmp_path / "out", sets)
    assert lines["flat blue", APPLE]["text"] == ["fruit, flat blue style", "fruit", "red apple, flat blue style", "red apple"]
    assert lines["noto", "own"]["text"] == ["own, noto style", "own"]


# Many things in four styles: persons in tones and genders, and plain ones; the last style has one.
PERSONS = {f"{n:x}": [f"{first}{n:x}{tone}" for first in ("", "1f468-200d-") for tone in ("", "-1f3fb", "-1f3ff")] for n in range(9000, 9100)}
PLAIN = [f"{n:x}" for n in range(0x1F300, 0x1F400)]
THINGS = [*PLAIN, *(thing for things in PERSONS.values() for thing in things)]
CELLS = [*((style, thing, f"name of {thing}") for style in ("a", "b", "c") for thing in THINGS), ("d", PLAIN[0], "x")]


@pytest.fixture(scope="module")
def kinds() -> dict[tuple[str, str], str]:
    return kinds_of(CELLS)


def kinds_of(cells: list[tuple[str, str, str]]) -> dict[tuple[str, str], str]:
    return {(style, thing): kind for (style, thing, _), kind in zip(cells, held_out(cells), strict=True)}


def test_things_are_held_out_from_every_style_with_their_families(kinds):
    families = [*([thing] for thing in PLAIN), *PERSONS.values()]
    held = [{kinds[style, thing] == THING for style in ("a", "b", "c") for thing in family} for family in families]
    assert all(len(found) == 1 for found in held)
    assert {True} in held[len(PLAIN) :]
    assert 0.01 < held.count({True}) / len(held) < 0.08  # of 356 families


def test_held_out_cells_are_of_things_and_styles_that_training_shows(kinds):
    cells = [cell for cell, kind in kinds.items() if kind == CELL]
    trained = [cell for cell, kind in kinds.items() if not kind]
    assert 0.02 < len(cells) / len(kinds) < 0.06
    assert ("d", PLAIN[0]) not in cells
    for style, thing in cells:
        assert any(other != style and same == thing for other, same in trained)
        assert any(same == style and other != thing for same, other in trained)
    of_persons = [(style, family) for style, thing in cells for family in PERSONS.values() if thing in family]
    assert of_persons
    assert all(kinds[style, thing] == CELL for style, family in of_persons for thing in family)


def test_a_thing_that_one_style_alone_has_is_in_no_held_out_cell(kinds):
    style, person = next((style, thing) for (style, thing), kind in kinds.items() if kind == CELL and thing in PERSONS)
    alone = f"{person}-200d-2640"
    assert kinds_of([*CELLS, (style, alone, f"name of {person}")])[style, alone] == ""


def test_families_go_by_name_too():
    cells = [("a", "1f48f", "kiss"), ("a", "1f468-200d-2764-200d-1f468", "kiss-man-man"), ("a", "2764", "red-heart"), ("a", "key", "key")]
    families = icons._families((thing, name) for _, thing, name in cells)
    assert len({families[thing] for _, thing, _ in cells[:3]}) == 1
    assert families["key"] != families["2764"]


def test_held_out_is_what_it_was_in_another_order_and_with_another_set(kinds):
    assert kinds_of(CELLS[::-1]) == kinds
    more = kinds_of([*CELLS, *(("e", thing, f"name of {thing}") for thing in PLAIN)])
    assert [cell for cell, kind in kinds.items() if kind == THING] == [cell for cell, kind in more.items() if kind == THING and cell[0] != "e"]


def test_the_reader_keeps_the_split_and_drops_no_caption_for_a_cell(tmp_path, sets, monkeypatch):
    kinds = {("noto", "own"): THING, ("flat blue", APPLE): CELL}
    monkeypatch.setattr(icons, "held_out", lambda cells: [kinds.get((style, thing), "") for style, thing, _ in cells])
    lines = made(tmp_path / "out", sets)
    records = read(tmp_path / "out").records
    assert [(record.split, record.extra["heldout"]) for record in records] == [(line["split"], line["heldout"]) for line in lines.values()]
    packed = pack(tmp_path / "out", tmp_path / "packed", 16, progress=False)
    assert {packed.extras[item]["heldout"] for item in packed.train} == {""}
    assert {packed.extras[item]["heldout"] for item in packed.heldout} == {THING, CELL}
    assert not packed.report.dropped_captions
    assert all(caption.endswith(" style") for line in lines.values() for caption in line["text"] if line["heldout"] == CELL)


def test_an_icon_with_a_broken_drawing_is_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    broken = write_set(tmp_path / "set", {"a": RED, "b": {"body": "<g>"}})
    assert set(made(tmp_path / "out", {"x": broken})) == {("x", "a")}
    assert "1 left out: unreadable image 1" in caplog.text
    assert "set:b: the image cannot be read: mismatched tag" in caplog.text


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"sets": {"x": Path("missing")}}, UsageError, r"icon set missing is neither icons\.json nor a folder with it"),
        ({"sets": {"x": Path("x.json")}}, GanT2IError, r"x\.json is not an Iconify set"),
        ({"sets": {"x": Path("y.json")}}, GanT2IError, r"y\.json is not JSON"),
        ({"sets": {"x": Path("hidden")}}, GanT2IError, "no icon of x is left"),
        ({"size": 4}, UsageError, "must be from 16 to 1024"),
        ({"foreground": "plaid"}, UsageError, "is not a colour"),
        ({"languages": ["zh"]}, UsageError, "--tags names a folder"),
        ({"tags": Path("hidden")}, UsageError, "is not a folder of emojibase-data: it has no en/data.json"),
        ({"tags": Path("emojibase-data"), "languages": ["zz"]}, UsageError, "unknown language 'zz'"),
        ({"tags": Path("bad")}, GanT2IError, "is not a list of emoji with hexcode and label"),
        ({"out": Path("hidden")}, UsageError, "is not empty"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(tmp_path, monkeypatch, sets, tags, change, error, why):
    monkeypatch.chdir(tmp_path)
    write_json(Path("x.json"), {})
    write_json(Path("y.json"), "{")
    write_json(Path("bad/en/data.json"), [1])
    write_set(Path("hidden"), {"a": {**RED, "hidden": True}})
    before = sorted(Path().iterdir())
    options = {"out": Path("out"), "sets": sets, "progress": False, **change}
    with pytest.raises(error, match=why):
        make_icons(**options)
    assert sorted(Path().iterdir()) == before


def test_the_command(tmp_path, sets):
    arguments = [part for style, path in sets.items() for part in ("--set", f"{style}={path}")]
    result = CliRunner().invoke(command, ["data", "make", "icons", str(tmp_path / "out"), *arguments, "--size", "16"])
    assert result.exit_code == 0, result.output
    assert "made 5 pictures of 16 x 16 pixels" in result.output
    assert "licence MIT" in result.output
    for wrong in (["noto"], ["=x"], [arguments[1], arguments[1]]):
        parts = [part for pair in wrong for part in ("--set", pair)]
        result = CliRunner().invoke(command, ["data", "make", "icons", str(tmp_path / "new"), *parts])
        assert result.exit_code == 2
        assert "must be STYLE=PATH, each style once" in result.output
