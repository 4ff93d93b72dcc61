import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from gan_t2i.cli.main import command
from gan_t2i.runs import RunFolder


def test_explain_writes_a_sheet_and_prints_each_word(trained: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    arguments = ["explain", str(trained.path), "-p", "red star", "--out", str(out)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "replaced" not in result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()[:3]] == ["word", "red", "star"]
    assert result.stdout.splitlines()[-1] == str(out)
    with Image.open(out) as sheet:
        assert sheet.width > 4 * 32
    shares = json.loads(CliRunner().invoke(command, [*arguments, "--json"]).stdout)
    assert [word["word"] for word in shares["words"]] == ["red", "star"]
    assert all(0 <= word[key] <= 1 for word in shares["words"] for key in ("change", "attention"))


def test_explain_warns_of_unknown_words_and_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "sheet.png").touch()
    result = CliRunner().invoke(command, ["explain", "pretrained:shapes64", "-p", "red xylophone", "--out", str(tmp_path / "sheet.png")])
    assert "prompt 'red xylophone': never seen in training: 'xylophone'" in result.stderr
    assert "sheet.png exists and is replaced" in result.stderr


def test_a_long_word_leaves_the_table_narrow(tmp_path: Path) -> None:
    arguments = ["explain", "pretrained:shapes64", "-p", f"red {'q' * 500}", "--out", str(tmp_path / "sheet.png")]
    table = CliRunner().invoke(command, arguments).stdout.splitlines()[:3]
    assert [len(line) for line in table] == [40 + len("  change  attention")] * 3


@pytest.mark.parametrize(("prompt", "message"), [("star", "2 to 24 words can be explained"), ("", "prompt 1 is empty")])
def test_what_cannot_be_explained_is_one_sentence(prompt: str, message: str) -> None:
    result = CliRunner().invoke(command, ["explain", "pretrained:shapes64", "-p", prompt])
    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]
