"""``gan-t2i sample``: prompts in, picture files out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from gan_t2i import Text2Image
from gan_t2i.cli.main import command
from gan_t2i.runs import RunFolder

Sample = Callable[..., Result]


@pytest.fixture
def sample(trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """Runs the command with the trained run, in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(command, ["sample", str(trained.path), *map(str, arguments)], input=stdin)

    return run


def test_files(sample: Sample, trained: RunFolder, tmp_path: Path) -> None:
    result = sample("-p", "a red circle", "--prompt", "blue square", "--seeds", "0-1,5")
    assert result.exit_code == 0, result.output
    names = [f"out/{stem}-seed{seed}.png" for stem in ("a-red-circle", "blue-square") for seed in (0, 1, 5)]
    assert result.stdout.splitlines() == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [Path(name).name for name in names]
    expected = Text2Image.load(trained.path).generate(["a red circle", "blue square"], seeds=[0, 1, 5])
    for name, picture in zip(names, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(name)), np.asarray(picture))
    assert f"model: {trained.snapshot(40)}" in result.stderr
    assert "text encoder: tiny" in result.stderr


def test_latest_is_the_default(trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.path.parent.parent)
    result = CliRunner().invoke(command, ["sample", "-p", "red", "--outdir", str(tmp_path)])
    # the first word is the model, where there is one
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'red-seed0.png'}\n"


def test_one_grid(sample: Sample, tmp_path: Path) -> None:
    result = sample("-p", "a red circle", "-p", "blue square", "--seeds", "0-2", "--grid", "sheets/all.png")
    assert result.exit_code == 0, result.output
    assert result.stdout == "sheets/all.png\n"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["all.png"]
    with Image.open("sheets/all.png") as sheet:
        assert sheet.width > 6 * 96  # two rows of three beside each other
        assert sheet.info["Software"].startswith("gan_t2i")


def test_json(sample: Sample) -> None:
    result = sample("-p", "ein rotes Öl", "--seeds", "4,2", "--json")
    assert json.loads(result.stdout) == [
        {"prompt": "ein rotes Öl", "seed": seed, "path": f"out/ein-rotes-öl-seed{seed}.png"} for seed in (4, 2)
    ]
    grid = sample("-p", "red", "-p", "green", "--grid", "g.png", "--json")
    assert json.loads(grid.stdout) == [{"prompt": prompt, "seed": 0, "path": "g.png"} for prompt in ("red", "green")]


def test_prompts_from_a_file_and_from_standard_input(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  blue square \r\n红圆\n", encoding="utf-8")
    result = sample("--prompts", "prompts.txt", "-p", "green")
    assert result.stdout.splitlines() == [f"out/{stem}-seed0.png" for stem in ("green", "a-red-circle", "blue-square", "红圆")]
    result = sample("--prompts", "-", stdin="a red circle\nyellow")
    assert result.stdout.splitlines() == ["out/a-red-circle-seed0.png", "out/yellow-seed0.png"]


def test_truncation_and_long_prompts(sample: Sample) -> None:
    result = sample("-p", "red circle " * 20, "--trunc", 0, "--seeds", "0,1")
    assert result.exit_code == 0, result.output
    assert "has 42 tokens; the model reads 16, the rest is left out" in result.stderr
    first, second = (np.asarray(Image.open(path)) for path in result.stdout.splitlines())
    assert np.array_equal(first, second)
    assert sample("-p", "red", "--trunc", -1).exit_code == 2


@pytest.mark.parametrize(("text", "seeds"), [("3", [3]), ("0-2", [0, 1, 2]), ("1,5,7-9", [1, 5, 7, 8, 9]), ("4-4, 0", [4, 0])])
def test_seeds(sample: Sample, text: str, seeds: list[int]) -> None:
    assert sample("-p", "red", "--seeds", text).stdout.splitlines() == [f"out/red-seed{seed}.png" for seed in seeds]


@pytest.mark.parametrize("text", ["", "x", "-1", "3-1", "1,,2", "1-2-3", "1.5", "0-"])
def test_what_is_not_a_seed(sample: Sample, tmp_path: Path, text: str) -> None:
    result = sample("-p", "red", "--seeds", text)
    assert result.exit_code == 2
    assert f"{text!r} is not a list of seeds; write 3, 0-3 or 1,5,7-9" in " ".join(result.stderr.split())
    assert not any(tmp_path.iterdir())
