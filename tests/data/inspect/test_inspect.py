"""Findings of `data inspect`: each possible fault of a data set, planted."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.decode import BadImageError
from gan_t2i.data.inspect import pictures as picture_stats
from gan_t2i.data.inspect.captions import words_of
from gan_t2i.data.inspect.page import page
from gan_t2i.data.inspect.report import Inspection, inspect
from gan_t2i.data.packing import pack
from gan_t2i.data.settings import DataSettings


def count_words(captions: list[str]) -> list[int]:
    return [len(caption.split()) + 2 for caption in captions]


def look(source: Path, **options: Any) -> Inspection:
    return inspect(source, DataSettings(), count_words, 8, "words", progress=False, **options)


def photograph(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    folder = tmp_path / "messy"
    folder.mkdir()
    rows: list[dict[str, Any]] = []

    def add(name: str, *captions: str) -> None:
        rows.append({"file_name": name, "text": list(captions)})

    for index in range(4):
        photograph(index).save(folder / f"{index}.png")
        add(f"{index}.png", f"a red house number {'abcd'[index]} on the left")
    shutil.copy(folder / "0.png", folder / "same.png")
    add("same.png", "the house again", "a house by bob@example.org, see www.example.org")
    photograph(1).save(folder / "near.jpg", quality=80)
    add("near.jpg", "<script>alert(1)</script> & more house words than the window of the encoder has room for")
    Image.new("RGB", (64, 64), "white").save(folder / "empty.png")
    Image.new("RGB", (64, 64), (250, 252, 254)).save(folder / "pale.png")
    add("empty.png", "nothing")
    add("pale.png", "nothing")
    photograph(9, (64, 20)).save(folder / "tiny.png")
    add("tiny.png", "a strip")
    for index in range(7):
        (folder / f"broken{index}.png").write_bytes(b"no picture")
        add(f"broken{index}.png", "broken")
    add("missing.png", "gone")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_every_fault_is_found(messy: Path) -> None:
    found = look(messy)
    assert found.report.pairs == found.pictures.looked_at == 9
    assert found.report.bad == {"unreadable image": 7, "missing image": 1}
    assert [where for where, _ in found.faults["unreadable image"]] == [f"metadata.jsonl:{10 + i} (broken{i}.png)" for i in range(5)]
    assert found.faults["missing image"][0][0] == "metadata.jsonl:17"
    pictures = found.pictures
    assert pictures.exact_duplicates.first == [["metadata.jsonl:1 (0.png)", "metadata.jsonl:5 (same.png)"]]
    assert pictures.near_duplicates.first == [["metadata.jsonl:2 (1.png)", "metadata.jsonl:6 (near.jpg)"]]
    assert (pictures.exact_duplicates.surplus, pictures.near_duplicates.surplus) == (1, 1)
    assert pictures.near_empty.first == ["metadata.jsonl:7 (empty.png)", "metadata.jsonl:8 (pale.png)"]
    assert pictures.tiny.first == ["metadata.jsonl:9 (tiny.png)"]
    assert pictures.width == {"least": 48, "median": 48, "most": 64}
    assert pictures.height == {"least": 20, "median": 40, "most": 64}
    assert pictures.smallest_side == {"least": 20, "p5": 20, "median": 40, "most": 64}
    text = found.captions
    assert text.per_picture == {"least": 1, "mean": 1.11, "most": 2}
    assert (text.distinct, text.window, text.cut) == (9, 8, 5)  # "a red house ..." has 8 words and 2 tokens more
    assert text.words["house"] == 7
    assert text.directions == {"left": 4}
    assert text.direction_share == text.colour_share == 0.4
    assert text.personal == {"email": 1, "url": 1}
    assert text.first_personal == [("metadata.jsonl:5", "email, url")]
    assert "bob@" not in str(found)  # personal data are named by their place alone


def test_json_is_plain_and_complete(messy: Path) -> None:
    values = json.loads(json.dumps(look(messy).to_json()))
    assert values["first_bad"]["missing image"] == [{"where": "metadata.jsonl:17", "why": "'missing.png' does not exist"}]
    assert values["pictures"]["near_duplicates"]["groups"] == 1
    assert values["text"]["first_personal"] == [{"where": "metadata.jsonl:5", "kinds": "email, url"}]
    assert len(values["examples"]) == 9


def test_the_page_is_one_file_without_scripts(messy: Path) -> None:
    found = replace(look(messy), faults={"<i>kind": [("<u>.png", "no picture")]})
    html = page(found, "resolution: 64 # <b>")
    assert not re.search("<[iu]>", html)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in html
    assert "# &lt;b&gt;" in html
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(links) == 9
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert "default-src 'none'" in html


def test_a_limit_inspects_some_pictures_and_all_captions(messy: Path) -> None:
    found = look(messy, limit=2)
    assert found.pictures.looked_at == 1  # the last one is broken
    assert found.report.pairs == 15
    assert found.captions.directions == {"left": 4}


def test_transparent_pictures_are_counted_and_opaque_ones_in_rgba_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "clear"
    folder.mkdir()
    for name, colour in (("hole", (255, 0, 0, 0)), ("opaque", (255, 0, 0, 255))):
        Image.new("RGBA", (32, 32), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name, encoding="utf-8")
    found = look(folder)
    assert found.pictures.transparent == 1
    assert "\ntransparent: 1 of 2 pictures; drawn on white; --alpha keeps it\n" in str(found)
    packed = pack(folder, tmp_path / "packed", 32, DataSettings(alpha=True), progress=False)
    assert "\ntransparent: 1 of 2 pictures; kept\n" in str(look(packed.folder))
    assert found.summary().endswith("--alpha keeps it")
    assert str(look(pack(folder, tmp_path / "flat", 32, progress=False).folder)).count("transparent: ") == 1


def test_threads_change_nothing(messy: Path) -> None:
    assert look(messy, workers=1).to_json() == look(messy, workers=3).to_json()


def test_a_packed_folder_is_inspected_too(messy: Path, tmp_path: Path) -> None:
    found = look(pack(messy, tmp_path / "packed", 32, progress=False).folder)
    assert found.pictures.looked_at == 9
    assert found.pictures.width == {"least": 32, "median": 32, "most": 32}
    assert found.pictures.exact_duplicates.surplus == 1
    assert found.report.bad["unreadable image"] == 7
    assert len(found.faults["left out when packed"]) == 5


def test_a_bad_picture_stops_with_on_bad_error(messy: Path) -> None:
    with pytest.raises(GanT2IError, match=r"metadata.jsonl:17"):  # the reader comes before the pictures
        inspect(messy, DataSettings(on_bad="error"), count_words, 8, "words", progress=False)


def test_no_picture_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "a.txt").write_text("a thing")
    with pytest.raises(GanT2IError, match="no picture can be read"):
        look(tmp_path)


def test_a_pictures_size_does_not_stay_in_memory(tmp_path: Path) -> None:
    photograph(0, (1200, 900)).save(tmp_path / "a.jpg")
    facts = picture_stats.facts_of(tmp_path / "a.jpg", "white")
    assert facts.size == (1200, 900)
    assert facts.colours.nbytes + len(facts.digest) == 64
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(BadImageError):
        picture_stats.facts_of(tmp_path / "b.png", "white")


def test_words() -> None:
    assert words_of("The Left-hand circle's 2 edges, 左边") == ["the", "left", "hand", "circle", "s", "edges", "左", "边"]
