"""Pictures changed by words: what is kept, what follows from the words, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from gan_t2i.cli.main import command
from gan_t2i.core.errors import GanT2IError
from gan_t2i.core.images import from_uint8, to_uint8
from gan_t2i.sampling import edit as module
from gan_t2i.sampling.edit import Change, edit, edit_in_pieces, likely_source, read_mask
from gan_t2i.sampling.inversion import Inversion
from gan_t2i.sampling.pipeline import Text2Image


def test_a_colour_changes_and_the_rest_stays(shapes: Text2Image) -> None:
    [red] = shapes.generate("a large red circle in the center of a white background", seeds=3)
    pixels = np.asarray(red).copy()
    pixels[:6, :6] = (0, 200, 0)  # a mark that no shape has
    picture = from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    prompt = "a large blue circle in the center of a white background"
    edited = np.asarray(edit(shapes, picture, Change(prompt))).astype(int)
    circle = (pixels[..., 0] > 180) & (pixels[..., 1:].max(axis=2) < 110)
    assert circle.sum() > 50
    assert (edited[circle][:, 2] > edited[circle][:, 0]).mean() > 0.8
    assert (edited[:6, :6, 1] > edited[:6, :6, [0, 2]].max(axis=2) + 30).mean() > 0.8
    unchanged = edit(shapes, picture, Change(prompt, steps=0, strength=0.0))
    assert np.abs(np.asarray(unchanged).astype(int) - pixels).max() <= 1


def test_between_pieces_the_model_is_as_it_was(shapes: Text2Image) -> None:
    picture, before = from_uint8(to_uint8(shapes.generate("a red circle"))), shapes.generate("two stars")
    pieces = edit_in_pieces(shapes, picture, Change("a blue circle", steps=3))
    assert [next(pieces) for _ in range(4)] == [None] * 4
    assert shapes.generate("two stars") == before
    assert [next(pieces)] == [edit(shapes, picture, Change("a blue circle", steps=3))]
    assert list(pieces) == []


def test_a_mask_keeps_what_it_covers(shapes: Text2Image, tmp_path: Path) -> None:
    mask = Image.new("RGBA", (128, 128), "black")
    mask.paste((0, 0, 0, 0), (0, 0, 64, 128))
    mask.save(tmp_path / "mask.png")
    covered = read_mask(tmp_path / "mask.png", shapes)
    assert covered.shape == (1, 1, 64, 64)
    [red] = shapes.generate("a red circle", seeds=3)
    picture = from_uint8(to_uint8([red]))
    edited = np.asarray(edit(shapes, picture, Change("a blue circle", steps=2, mask=covered)))
    everywhere = np.asarray(edit(shapes, picture, Change("a blue circle", steps=2)))
    assert (edited[:, 36:] == np.asarray(red)[:, 36:]).all()
    assert (edited[:, :28] == everywhere[:, :28]).all()
    assert (everywhere[:, 36:] != edited[:, 36:]).any()
    mask.convert("RGB").crop((0, 0, 128, 64)).save(tmp_path / "mask.png")
    with pytest.raises(GanT2IError, match=r"mask\.png has no transparent places"):
        read_mask(tmp_path / "mask.png", shapes)


@pytest.mark.parametrize(
    ("prompt", "source"),
    [
        ("a blue apple", "an apple"),
        ("an orange car", "a car"),
        ("red hearts, Golden ring", "hearts, ring"),
        ("blue", "blue"),
        ("heart", "heart"),
    ],
)
def test_without_its_colours(shapes: Text2Image, prompt: str, source: str) -> None:
    assert likely_source(Inversion(shapes, torch.zeros(1, 3, 64, 64)), prompt) == source


def test_without_the_word_whose_absence_fits(shapes: Text2Image) -> None:
    [picture] = shapes.generate("three circles", seeds=0)
    assert likely_source(Inversion(shapes, from_uint8(to_uint8([picture]))), "three small circles") == "three circles"


def test_of_many_words_only_the_first_are_left_out(shapes: Text2Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WORDS", 1)
    assert likely_source(Inversion(shapes, torch.zeros(1, 3, 64, 64)), "large circle above star") == "circle above star"


def test_the_command(shapes: Text2Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 1)
    shapes.generate("a red circle", seeds=0)[0].save(tmp_path / "red.png")
    out = tmp_path / "blue.png"
    arguments = ["edit", str(tmp_path / "red.png"), "pretrained:shapes64", "-p", "a blue circle", "--from", "a red circle", "--out", str(out)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"{out}\n")
    with Image.open(out) as picture:
        assert picture.size == (64, 64)


def test_the_command_says_what_it_takes_the_picture_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 1)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("black.png")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(command, ["edit", "black.png", "pretrained:shapes64", *arguments])

    result = run("-p", "a blue xylophone", "--out", "black.png")
    assert result.exit_code == 0, result.output
    assert "--from: 'a xylophone', a guess" in result.stderr
    assert "prompt 'a blue xylophone': never seen in training: 'xylophone'" in result.stderr
    assert "black.png exists and is replaced" in result.stderr
    long = run("-p", f"a blue {'q' * 5000}", "--out", "black.png")
    assert max(map(len, long.stderr.splitlines())) < 300
    for same in (("-p", "a circle", "--from", "a  circle"), ("-p", "circle")):  # a single word is its own guess
        result = run(*same, "--out", "black.png")
        assert result.exit_code == 2
        assert "replaced" not in result.stderr
        assert "say with --from what the picture shows now" in result.stderr.splitlines()[-1]
