"""Names of picture files, and what stands in them."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from gan_t2i import __version__
from gan_t2i.core.errors import UsageError
from gan_t2i.core.images import save_picture
from gan_t2i.sampling.save import file_names

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_names_say_prompt_and_seed() -> None:
    assert file_names(["A red circle!", "blue/../square"], [0, 12]) == [
        "a-red-circle-seed0.png",
        "a-red-circle-seed12.png",
        "blue-square-seed0.png",
        "blue-square-seed12.png",
    ]


def test_prompts_of_any_script() -> None:
    assert file_names(["一只红色的猫", "красный круг", "été"], [1]) == ["一只红色的猫-seed1.png", "красный-круг-seed1.png", "été-seed1.png"]
    wordless = ["\N{DOG FACE}", "\N{CAT FACE}", "?"]
    assert file_names(wordless, [1])[0].startswith("untitled-")
    # also between calls, which write into the same folder
    assert len({file_names([prompt], [1])[0] for prompt in wordless}) == 3


def test_names_that_would_collide_are_numbered() -> None:
    names = file_names(["red circle", "Red, circle", "red circle 2", "red-circle"], [0, 1])
    assert len(set(names)) == 8
    assert names[::2] == ["red-circle-seed0.png", "red-circle.2-seed0.png", "red-circle-2-seed0.png", "red-circle.3-seed0.png"]


@pytest.mark.parametrize("letter", ["a", "猫", "\N{MATHEMATICAL BOLD SMALL A}"], ids=["1 byte", "3 bytes", "4 bytes"])
def test_long_prompts_are_cut_and_kept_apart(letter: str, tmp_path: Path) -> None:
    prompts = [letter * 300, letter * 300 + " b", letter * 301]
    names = file_names(prompts, [123456789])
    assert len(set(names)) == 3
    assert [names[0]] == file_names(prompts[:1], [123456789])  # whatever it is drawn with
    for name in names:
        save_picture(Image.new("RGB", (8, 8)), tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_png_tells_its_origin_and_not_its_prompt(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    path = tmp_path / "deep" / "er" / "a-secret-wish-seed0.png"
    save_picture(picture, path)
    with Image.open(path) as read:
        assert read.format == "PNG"
        assert np.array_equal(np.asarray(read), np.asarray(picture))
        assert read.info["Software"] == f"gan_t2i {__version__}"
        (description,) = ElementTree.fromstring(read.info["XML:com.adobe.xmp"]).iter(RDF + "Description")
    assert description.attrib == {RDF + "about": "", IPTC + "DigitalSourceType": TRAINED}
    assert b"wish" not in path.read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot write .*picture\.png: "):
        save_picture(Image.new("RGB", (8, 8)), tmp_path / "file" / "picture.png")
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(UsageError, match=r"cannot write .*picture\.png: "):
        save_picture(Image.new("RGB", (8, 8)), tmp_path / "picture.png")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "picture.png"]
