"""``gan-t2i sample``: prompts in, picture files out."""

import base64
import io
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    for wrong in (-1, "nan", "inf"):
        assert sample("-p", "red", "--trunc", wrong, "--outdir", "wrong").exit_code == 2
    assert not Path("wrong").exists()


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [3]), ("0-2", [0, 1, 2]), ("1,5,7-9", [1, 5, 7, 8, 9]), ("4-4, 0", [4, 0]), ("1,1,0-2", [1, 0, 2])]
)
def test_seeds(sample: Sample, text: str, seeds: list[int]) -> None:
    assert sample("-p", "red", "--seeds", text).stdout.splitlines() == [f"out/red-seed{seed}.png" for seed in seeds]


@pytest.mark.parametrize("text", ["", "x", "-1", "3-1", "1,,2", "1-2-3", "1.5", "0-", "1" * 5000])
def test_what_is_not_a_seed(sample: Sample, tmp_path: Path, text: str) -> None:
    result = sample("-p", "red", "--seeds", text)
    assert result.exit_code == 2
    assert f"{text!r} is not a list of seeds; write 3, 0-3 or 1,5,7-9" in " ".join(result.stderr.split())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("prompts", "seeds"), [(1, "0-2000000000"), (1, "0-999999,5-6"), (3, "0-400000")])
def test_too_many_pictures_are_a_sentence(sample: Sample, tmp_path: Path, prompts: int, seeds: str) -> None:
    result = sample(*["-p", "red"] * prompts, "--seeds", seeds)
    assert result.exit_code == 2
    assert "1,000,000" in result.stderr
    assert not any(tmp_path.iterdir())


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int, signal_number: int = signal.SIGINT) -> None:
    """Send a signal while the picture of that number is drawn."""
    from gan_t2i.sampling import captured

    left = iter(range(number - 1, -1, -1))
    to_pictures = captured.to_pictures

    def stop_and_draw(images: Any) -> Any:
        if next(left, -1) == 0:
            signal.raise_signal(signal_number)
        return to_pictures(images)

    monkeypatch.setattr(captured, "to_pictures", stop_and_draw)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_what_is_done_and_the_same_command_goes_on(sample: Sample, monkeypatch: pytest.MonkeyPatch, signal_number: int) -> None:
    words = ["-p", "red", "-p", "blue", "--seeds", "0-1", "--json"]
    stop_at(monkeypatch, 3, signal_number)
    result = sample(*words)
    assert result.exit_code == 128 + signal_number
    assert "stopped after 3 of 4 pictures; the same command goes on" in result.stderr
    done = json.loads(result.stdout)
    assert [entry["path"] for entry in done] == ["out/red-seed0.png", "out/red-seed1.png", "out/blue-seed0.png"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["blue-seed0.png", "red-seed0.png", "red-seed1.png"]
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    result = sample(*words)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == [*done, {"prompt": "blue", "seed": 1, "path": "out/blue-seed1.png"}]
    assert "3 of 4 pictures were there already (--overwrite draws them again)" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "already" not in sample(*words, "--overwrite").stderr
    assert {path: path.stat().st_mtime_ns for path in before} != before


def test_a_stopped_sheet_is_not_written(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 2)
    result = sample("-p", "red", "--seeds", "0-2", "--grid", "sheet.png", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (130, [])
    assert "stopped after 2 of 3 pictures; no sheet is written" in result.stderr
    assert not any(tmp_path.iterdir())


def test_another_picture_is_not_replaced(sample: Sample) -> None:
    assert sample("-p", "a red heart").stdout == "out/a-red-heart-seed0.png\n"
    first = Path("out/a-red-heart-seed0.png").read_bytes()
    result = sample("-p", "a RED/heart?", "--trunc", 0.5)
    assert result.stdout == "out/a-red-heart.2-seed0.png\n"
    assert "out/a-red-heart-seed0.png holds something else and stays" in result.stderr
    assert Path("out/a-red-heart-seed0.png").read_bytes() == first
    assert sample("-p", "a RED/heart?", "--trunc", 0.5, "--overwrite").stdout == "out/a-red-heart-seed0.png\n"
    assert Path("out/a-red-heart-seed0.png").read_bytes() == Path("out/a-red-heart.2-seed0.png").read_bytes()


def test_progress_shows_on_stderr(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    for prompt in ("red", "red " * 30):  # the second one with a warning
        assert "drawing" not in sample("-p", prompt).stderr
    monkeypatch.setattr("gan_t2i.cli.sample.SHOWN_AFTER", 0)
    result = sample("-p", "red", "--seeds", "0-2")
    assert "drawing: 100%" in result.stderr
    assert len(result.stdout.splitlines()) == 3


def test_a_mark_at_the_beginning_of_a_file_is_no_part_of_a_prompt(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfa red circle\r\n")
    for result in (sample("--prompts", "prompts.txt", "--json"), sample("--prompts", "-", "--json", stdin=b"\xef\xbb\xbfa red circle\r\n")):
        assert [entry["prompt"] for entry in json.loads(result.stdout)] == ["a red circle"]


@pytest.mark.parametrize(("name", "form"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP"), ("a.tif", "TIFF")])
def test_a_sheet_has_the_format_of_its_name(sample: Sample, name: str, form: str) -> None:
    assert sample("-p", "red", "--grid", name).exit_code == 0
    with Image.open(name) as sheet:
        assert sheet.format == form
    assert b"trainedAlgorithmicMedia" in Path(name).read_bytes()


def test_a_page_of_pictures_stands_alone(sample: Sample, trained: RunFolder) -> None:
    hostile = '<script src="https://example.org/x.js"></script>'
    result = sample("-p", hostile, "-p", "ein rotes Öl", "--seeds", "3,5", "--grid", "sheet.html")
    assert (result.exit_code, result.stdout) == (0, "sheet.html\n"), result.output
    text = Path("sheet.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "default-src 'none'; img-src data:" in text
    assert set(re.findall(r'(?:src|href)="([^,"]*)', text)) == {"data:image/png;base64"}
    assert re.findall(r'alt="(ein [^"]*)"', text) == ["ein rotes Öl, seed 3", "ein rotes Öl, seed 5"]
    assert text.count("<figcaption>seed 5</figcaption>") == 2
    files = [base64.b64decode(found) for found in re.findall(r"base64,([^\"]*)", text)]
    assert all(b"trainedAlgorithmicMedia" in file for file in files)
    expected = Text2Image.load(trained.path).generate([hostile, "ein rotes Öl"], seeds=[3, 5])
    for file, picture in zip(files, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), np.asarray(picture))


@pytest.mark.parametrize("name", ["sheet", "sheet.txt", "sheet.mp4", "sheet.msp", "sheet.wmf", "file/sheet.png", "file/sheet.html"])
def test_a_sheet_that_cannot_be_written_is_a_sentence(sample: Sample, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    result = sample("-p", "red", "--grid", name)
    assert result.exit_code == 2
    assert f"cannot write {name}: " in result.stderr.splitlines()[-1]
    assert "model:" not in result.stderr  # said at once
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "seeds", "sentence"),
    [
        ("sheet.jpg", "0-999", "cannot write sheet.jpg at 96,016 x "),
        ("sheet.png", "0-99999", "a sheet of 1 x 100,000 pictures would have 9,600,016 x "),
        ("sheet.html", "0-10000", "a page of 10,001 pictures: at most 10,000"),
    ],
)
def test_a_sheet_that_would_be_too_large_is_a_sentence(sample: Sample, tmp_path: Path, name: str, seeds: str, sentence: str) -> None:
    result = sample("-p", "red", "--grid", name, "--seeds", seeds)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"Error: {sentence}")
    assert not any(tmp_path.iterdir())


def test_a_sheet_that_exists_is_replaced_with_a_word(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "sheet.png").write_text("another")
    for arguments in (("-p", "red"), ("--mix", "red", "blue")):
        assert "sheet.png exists and is replaced" in sample(*arguments, "--grid", "sheet.png").stderr
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 16


@pytest.mark.parametrize(("name", "frames"), [("way.png", 1), ("way.gif", 8), ("way.webp", 8)])
def test_a_way_between_two_prompts(sample: Sample, name: str, frames: int) -> None:
    result = sample("--interpolate", "a red circle", "blue square", "--frames", 5, "--seeds", "1,4", "--grid", name)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{name}\n"
    with Image.open(name) as found:
        assert getattr(found, "n_frames", 1) == frames  # five there, and three back
        assert (found.width > 5 * 32) == (frames == 1)


def test_a_way_on_a_page(sample: Sample) -> None:
    assert sample("--interpolate", "a red circle", "blue square", "--frames", 3, "--grid", "way.HTML").exit_code == 0
    assert re.findall(r'alt="([^"]*)"', Path("way.HTML").read_text(encoding="utf-8")) == [
        f"a red circle -&gt; blue square, {number} of 3" for number in (1, 2, 3)
    ]


def test_mixes_of_two_prompts(sample: Sample) -> None:
    result = sample("--mix", "a red circle", "blue square", "--seeds", "1,4", "--grid", "mix.html")
    assert "replaced" not in result.stderr
    assert (result.exit_code, result.stdout) == (0, "mix.html\n"), result.output
    rows = re.findall(r"<h2>(.*)</h2>", Path("mix.html").read_text(encoding="utf-8"))
    assert rows == ["shapes: a red circle, colours: blue square", "shapes: blue square, colours: a red circle"]


def test_variations_of_a_seed(sample: Sample) -> None:
    result = sample("--variations", 3, "--strength", 0.2, "-p", "a red circle", "--grid", "strip.png")
    assert result.exit_code == 0, result.output
    with Image.open("strip.png") as strip:
        assert strip.width > 3 * 32


LONG = "red circle " * 20


@pytest.mark.parametrize("arguments", [["--interpolate", LONG, "red"], ["--mix", "red", LONG], ["--variations", "2", "-p", LONG]])
def test_ways_say_what_of_a_prompt_is_left_out(sample: Sample, arguments: list[str]) -> None:
    assert "has 42 tokens; the model reads 16, the rest is left out" in sample(*arguments, "--grid", "a.png").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--interpolate", "red", "blue"], "--grid FILE is missing"),
        (["--interpolate", "red", "blue", "-p", "green", "--grid", "a.png"], "takes its two prompts itself"),
        (["--interpolate", "red", "", "--grid", "a.png"], "prompt 2 is empty"),
        (["--variations", "3", "--grid", "a.png"], "--variations needs a single prompt"),
        (["--variations", "3", "--interpolate", "red", "blue", "--grid", "a.png"], "give one of them"),
        (["--mix", "red", "blue", "--interpolate", "red", "blue", "--grid", "a.png"], "give one of them"),
        (["--mix", "red", "blue", "--grid", "a.png", "-p", "green"], "--mix takes its two prompts itself"),
        (["-p", "red", "--frames", "5"], "--frames goes with --interpolate"),
        (["-p", "red", "--variations", "3", "--grid", "a.png", "--frames", "5"], "--frames goes with --interpolate, not with --variations"),
        (["-p", "red", "--strength", "0.2"], "--strength goes with --variations"),
        (["--mix", "red", "blue", "--grid", "a.png", "--json"], "--json goes with a picture per prompt and seed, not with --mix"),
        (["-p", "red", "--grid", "a.png", "--outdir", "b"], "--outdir goes with a file per picture, not with --grid"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(sample: Sample, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = sample(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not any(tmp_path.iterdir())
