"""Personal data in captions: matches, near misses, and redacted packs."""

import json
from pathlib import Path

import pytest
from PIL import Image

from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.packing import pack
from gan_t2i.data.personal import find_personal, redact
from gan_t2i.data.readers import read
from gan_t2i.data.settings import DataSettings

FOUND = [
    ("mail anna.b+x@example.org now", "email", "mail now"),
    ("see https://example.org/a?b=1, it is red", "url", "see, it is red"),
    ("a hat (www.example.com)", "url", "a hat"),
    ("poster from shop.example.com", "url", "poster from"),
    ("call +49 30 1234567 today", "phone", "call today"),
    ("call (555) 123-4567 today", "phone", "call today"),
    ("call 030 / 123 45 67 today", "phone", "call today"),
    ("a portrait of @anna_b.", "handle", "a portrait of someone."),
]
PLAIN = [
    "a car of 1990-2010, 1920 x 1080",
    "three cats @ the beach",
    "100 000 000 stars",
    "a U.S. flag, e.g. red",
    "number 1234567890",
    "0.12345678 of it",
    "an apple and a dog.",
]


@pytest.mark.parametrize(("caption", "kind", "left"), FOUND)
def test_personal_data_are_found_and_removed(caption: str, kind: str, left: str) -> None:
    assert find_personal(caption) == {kind: 1}
    assert redact(caption) == left
    assert not find_personal(left)


@pytest.mark.parametrize("caption", PLAIN)
def test_plain_captions_are_kept(caption: str) -> None:
    assert not find_personal(caption)
    assert redact(caption) == caption


def make(folder: Path, *captions: str) -> Path:
    folder.mkdir()
    for index, caption in enumerate(captions):
        Image.new("RGB", (16, 16), (40 * index, 0, 0)).save(folder / f"{index}.png")
        with (folder / "metadata.jsonl").open("a") as file:
            file.write(json.dumps({"file_name": f"{index}.png", "text": caption, "author": "@bob at bob@example.org"}) + "\n")
    return folder


def test_a_redacted_pack_equals_a_pack_of_redacted_captions(tmp_path: Path) -> None:
    data = make(tmp_path / "data", "a cat by @anna", "a dog, bob@example.org", "x@example.org")
    packed = pack(data, tmp_path / "packed", 16, DataSettings(redact=True), progress=False)
    assert sorted(packed.captions) == ["a cat by someone", "a dog"]
    assert packed.report.bad == {"caption only personal data": 1}
    assert "redacted in captions: 2 email, 0 url, 0 phone, 1 handle" in packed.report.notes
    assert "example.org" not in (tmp_path / "packed/meta.json").read_text()
    clean = pack(make(tmp_path / "clean", "a cat by someone", "a dog"), tmp_path / "packed2", 16, progress=False)
    assert packed.fingerprint == clean.fingerprint
    assert packed.fingerprint != pack(data, tmp_path / "packed3", 16, progress=False).fingerprint


def test_redacting_stops_at_a_vanished_caption_with_on_bad_error(tmp_path: Path) -> None:
    data = make(tmp_path / "data", "x@example.org", "a cat")
    with pytest.raises(GanT2IError, match=r"metadata.jsonl:1: the caption is empty without personal data"):
        read(data, DataSettings(redact=True, on_bad="error"))
