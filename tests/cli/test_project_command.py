import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from gan_t2i.cli.main import command
from gan_t2i.runs import RunFolder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_project_writes_a_sheet_and_prints_how_near_it_came(trained: RunFolder, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    arguments = ["project", str(picture), str(trained.path), "-p", "red circle", "--seed", "3", "--steps", "5", "--out", str(out)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    words, alone, projected, path = result.stdout.splitlines()
    assert (words, path) == ("words: red circle", str(out))
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 192
    again = CliRunner().invoke(command, [*arguments, "--json"])
    assert f"{out} exists and is replaced" in again.stderr
    facts = json.loads(again.stdout)
    assert (facts["prompt"], facts["guessed"], facts["seed"], facts["path"]) == ("red circle", False, 3, str(out))
    assert alone.split() == ["words", "alone", f"{facts['psnr']['words alone']:.1f}", "dB"]
    assert projected.split() == ["projected", f"{facts['psnr']['projected']:.1f}", "dB"]
    assert facts["psnr"]["projected"] > facts["psnr"]["words alone"]


def test_unknown_words_are_named(picture: Path, tmp_path: Path) -> None:
    arguments = ["-p", "red xylophone", "--steps", "0", "--out", str(tmp_path / "sheet.png")]
    result = CliRunner().invoke(command, ["project", str(picture), "pretrained:shapes64", *arguments])
    assert "prompt 'red xylophone': never seen in training: 'xylophone'" in result.stderr


def test_bad_input_is_one_sentence(trained: RunFolder, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "sheet.png").touch()
    for path, options, code, message in (
        (picture, [], 2, "say what the picture shows (-p)"),
        (picture, ["-p", ""], 2, "prompt 1 is empty"),
        (tmp_path / "text.png", ["-p", "red"], 1, "text.png cannot be used: the file is not one of"),
        (tmp_path / "none.png", ["-p", "red"], 2, "does not exist"),
    ):
        result = CliRunner().invoke(command, ["project", str(path), str(trained.path), *options, "--out", str(tmp_path / "sheet.png")])
        assert "replaced" not in result.output
        assert (result.exit_code, message in result.output.splitlines()[-1]) == (code, True), result.output
