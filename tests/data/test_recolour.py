"""Recoloured copies: the main hue is turned and nothing else, the captions say so, and evaluation sees none of them."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from gan_t2i.core.errors import GanT2IError, UsageError
from gan_t2i.data.batches.sampler import Sampler
from gan_t2i.data.inspect.captions import COLOURS
from gan_t2i.data.packing import META, PackedDataset, load_dataset, pack
from gan_t2i.data.recolour import HUES, is_colourless_name, recolour, with_colour
from gan_t2i.data.settings import DataConfig, DataSettings

SIDE = 32


def draw(fill: str, mode: str = "RGB") -> Image.Image:
    """Draw a disc of one colour with a black dot, on white or on nothing."""
    image = Image.new(mode, (SIDE, SIDE), "white" if mode == "RGB" else (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    pen.ellipse((4, 4, 28, 28), fill=fill)
    pen.rectangle((14, 14, 18, 18), fill="black")
    return image


def pixels(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def hue(rgb: np.ndarray) -> float:
    """Return the hue of a colour in degrees."""
    return float(np.asarray(Image.new("RGB", (1, 1), tuple(rgb.tolist())).convert("HSV"))[0, 0, 0]) * 360 / 256


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_only_the_main_hue_is_turned(mode: str) -> None:
    original = pixels(draw("red", mode))
    copies = dict(recolour(original, list(HUES), len(HUES)))
    assert list(copies) == ["yellow", "green", "blue", "purple", "pink"]  # neither red itself nor orange beside it
    for colour, copy in copies.items():
        assert copy.shape == original.shape
        assert abs(hue(copy[:3, 8, 16]) - HUES[colour]) < 12
        for y, x in ((0, 0), (16, 16)):
            assert (copy[:, y, x] == original[:, y, x]).all()
    assert [colour for colour, _ in recolour(original, ["green", "blue"], 1)] == ["green"]


def test_premultiplied_colours_stay_below_alpha() -> None:
    original = pixels(draw("red", "RGBA").resize((16, 16)).convert("RGBa").resize((SIDE, SIDE)))
    ((_, copy),) = recolour(original, ["yellow"], 1)
    assert (copy[3] == original[3]).all()
    assert (copy[:3] <= copy[3]).all()
    assert (copy != original).any()


@pytest.mark.parametrize("image", [Image.new("RGB", (SIDE, SIDE), "grey"), Image.new("RGB", (SIDE, SIDE), "white"), draw("black")])
def test_a_picture_without_a_main_hue_has_no_copies(image: Image.Image) -> None:
    assert recolour(pixels(image), list(HUES), 4) == []


def test_a_coloured_border_is_not_the_main_hue() -> None:
    image = Image.new("RGB", (SIDE, SIDE), "grey")
    ImageDraw.Draw(image).rectangle((0, 0, SIDE - 1, SIDE - 1), outline="blue", width=2)
    assert recolour(pixels(image), list(HUES), 4) == []


@pytest.mark.parametrize(
    ("name", "colour", "expected"),
    [
        ("rocket", "blue", "blue rocket"),
        ("an owl", "blue", "a blue owl"),
        ("A cat", "orange", "An orange cat"),
        ("the sun", "green", "the green sun"),
        ("anchor", "red", "red anchor"),
    ],
)
def test_the_colour_stands_before_the_name(name: str, colour: str, expected: str) -> None:
    assert with_colour(name, colour) == expected


def test_names_without_a_colour_are_told_from_other_captions() -> None:
    assert is_colourless_name("woman juggling")
    assert not is_colourless_name("Red-headed woodpecker")
    assert not any(is_colourless_name(f"a {colour} kite") for colour in COLOURS - {"bright", "dark", "pale", "monochrome"})
    assert not is_colourless_name("a dog that runs along a beach at dusk")


@pytest.fixture
def packed(tmp_path: Path) -> Callable[..., PackedDataset]:
    rows: list[dict[str, Any]] = [
        {"file_name": "0.png", "text": ["apple", "ripe fruit", "a red thing"], "split": "train", "style": "flat"},
        {"file_name": "1.png", "text": "stone", "split": "train"},
        {"file_name": "2.png", "text": ["ball", "apple ball"], "split": "heldout"},
        {"file_name": "3.png", "text": "green apple", "split": "heldout"},
    ]
    source = tmp_path / "source"
    source.mkdir()
    for row, fill in zip(rows, ("red", "grey", "blue", "green"), strict=True):
        draw(fill).save(source / row["file_name"])
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def make(**settings: Any) -> PackedDataset:
        return pack(source, tmp_path / f"packed {settings}", SIDE, DataSettings(**settings), progress=False)

    return make


def test_a_pack_has_copies_of_training_pictures_after_the_others(packed: Callable[..., PackedDataset]) -> None:
    plain, dataset = packed(), packed(recolour=4, caption_forms=("{}", "my {}"))
    assert (dataset.train.tolist(), dataset.heldout.tolist()) == (plain.train.tolist(), plain.heldout.tolist()) == ([0, 1], [2, 3])
    assert dataset.recoloured == {0: [4, 5, 6, 7]}
    assert (dataset.gather_packed(range(4)) == plain.gather_packed(range(4))).all()
    for copy in dataset.recoloured[0]:
        colour = dataset.extras[copy]["colour"]
        assert colour != "green"  # a green apple is held out
        names = [f"{colour} apple", f"{colour} ripe fruit"]
        assert [dataset.captions[caption] for caption in dataset.caption_ids[copy]] == [*names, *(f"my {name}" for name in names)]
        assert set(dataset.caption_ids[copy]) <= set(dataset.train_caption_ids)
    assert dataset.shown.tolist() == [0, 1, 4, 5, 6, 7]
    assert dataset.report.pairs == 4
    assert "4 copies of 1 training pictures in other colours" in dataset.report.notes
    assert [record.where for record in dataset.records()] == [f"images.u8:{index}" for index in range(4)]
    assert dataset.fingerprint != plain.fingerprint == packed(recolour=0, holdout_fraction=0.02).fingerprint
    assert dataset.fingerprint == packed(caption_forms=("{}", "my {}"), recolour=4).fingerprint


def test_a_pass_shows_each_picture_once_and_one_copy_of_it(packed: Callable[..., PackedDataset]) -> None:
    dataset = packed(recolour=3)
    sampler = Sampler(dataset, 0)
    passes = [sorted(sampler.item(position) for position in range(start, start + 3)) for start in range(0, 60, 3)]
    assert all(shown[:2] == [0, 1] for shown in passes)
    assert {shown[2] for shown in passes} == set(dataset.recoloured[0])
    assert [sampler.item(position) for position in (40, 7)] == [Sampler(dataset, 0).item(position) for position in (40, 7)]


def test_a_pass_shows_copies_of_a_share_of_the_pictures() -> None:
    copies = {0: [4, 5], 1: [6, 7], 2: [8, 9], 3: [10, 11]}
    dataset: Any = SimpleNamespace(train=np.arange(4), recoloured=copies, gather_packed=None)
    sampler = Sampler(dataset, 0, settings=DataConfig(recolour_share=0.5))
    passes = [sorted(sampler.item(position) for position in range(start, start + 6)) for start in range(0, 240, 6)]
    assert all(shown[:4] == [0, 1, 2, 3] for shown in passes)
    assert all(len({copy // 2 for copy in shown[4:]}) == 2 for shown in passes)  # of two pictures
    assert {copy for shown in passes for copy in shown[4:]} == set(range(4, 12))


def test_a_pack_without_copies_says_so_where_they_are_asked_for(packed: Callable[..., PackedDataset], said: list[str]) -> None:
    load_dataset(packed(recolour=2).folder, SIDE, DataSettings(recolour=2))
    assert not any("data.recolour" in line for line in said)
    folder = packed().folder
    load_dataset(folder, SIDE, DataSettings(recolour=2))
    assert f"data.recolour is not used: {folder} was packed without copies (data pack --recolour 2 makes them)" in said


def test_a_damaged_list_of_originals_is_refused(packed: Callable[..., PackedDataset]) -> None:
    folder = packed(recolour=3).folder
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    (folder / META).write_text(json.dumps(meta | {"originals": [99]}), encoding="utf-8")
    with pytest.raises(GanT2IError, match="the split names a picture that is not there"):
        PackedDataset.open(folder)


def test_a_number_of_copies_that_the_colours_do_not_reach_is_refused() -> None:
    with pytest.raises(UsageError, match=r"config key data\.recolour = 5"):
        DataSettings.parse({"recolour": 5}, where="data")
    with pytest.raises(UsageError, match=r"data\.recolour needs the whole data set packed"):
        DataConfig.parse({"recolour": 1, "stream": True}, where="data")
