"""``gan-t2i data``: output, files and refusals."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from gan_t2i.cli.main import command
from gan_t2i.core.errors import GanT2IError
from gan_t2i.data.builtin import emoji_font
from gan_t2i.data.packing import PackedDataset
from gan_t2i.training.config import TrainConfig


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, ["data", *map(str, arguments)])


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    assert run("make", "shapes", tmp_path / "shapes", "--count", 30, "--size", 16, "--heldout", 5).exit_code == 0
    return tmp_path / "shapes"


def test_make_shapes_prints_a_summary(tmp_path: Path) -> None:
    out = tmp_path / "my shapes"
    result = run("make", "shapes", out, "--count", 50, "--size", 16, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert f"made 50 pictures of 16 x 16 pixels in {out}: 48 for training, 2 held out" in result.output
    assert result.output.count('  "') == 3
    assert f"next: gan-t2i train --data '{out}'" in result.output


def test_make_refuses(shapes: Path, tmp_path: Path) -> None:
    again = run("make", "shapes", shapes)
    assert again.exit_code == 2
    assert "not empty" in again.output
    assert run("make", "shapes", tmp_path / "new", "--size", 3).exit_code == 2
    assert run("make", "shapes").exit_code == 2
    assert run("make", "emoji", tmp_path / "new", "--font", tmp_path / "missing.ttf").exit_code == 2
    assert run("make", "emoji", tmp_path / "new", "--background", "plaid").exit_code == 2
    assert not (tmp_path / "new").exists()


def test_make_emoji_without_a_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji_font, "_font_folders", lambda: [tmp_path])
    result = run("make", "emoji", tmp_path / "new")
    assert result.exit_code == GanT2IError.exit_code == 1
    assert "fonts-noto-color-emoji" in result.output
    assert "--font" in result.output


def test_make_emoji_passes_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def record(out: Path, **options: object) -> Path:
        given.update(options)
        out.mkdir()
        (out / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": ["red apple"]}) + "\n")
        return out

    monkeypatch.setattr(emoji_font, "make_emoji", record)
    result = run("make", "emoji", tmp_path / "new", "--size", 32, "--language", "en", "--language", "zh", "--flags")
    assert result.exit_code == 0, result.output
    expected = {"font": None, "size": 32, "background": "white", "languages": ("en", "zh"), "flags": True, "skin_tones": False}
    assert given == expected
    assert "made 1 picture of" in result.output
    assert '"red apple"' in result.output


def test_pack_and_inspect(shapes: Path, tmp_path: Path) -> None:
    packed = tmp_path / "the packed"
    result = run("pack", shapes, packed, "--resolution", 16)
    assert result.exit_code == 0, result.output
    assert "30 usable pairs" in result.output
    assert f"gan-t2i train --data '{packed}' --set resolution=16" in result.output
    assert run("pack", shapes, packed, "--resolution", 16).exit_code == 2
    again = run("pack", packed, tmp_path / "again", "--resolution", 16)
    assert again.exit_code == 2
    assert f"{packed} is packed already: train on it as it is" in again.stderr
    assert run("pack", shapes, tmp_path / "other", "--resolution", 17).exit_code == 2
    for path in (shapes, packed):
        shown = run("inspect", path)
        assert shown.exit_code == 0, shown.output
        assert "30 usable pairs, 90 captions; 5 pairs held out" in shown.output
    assert re.search(rf"recommended: --preset \w+, adapted to the data by `gan-t2i doctor --data '{packed}' --write FILE`\n", shown.output)


def test_pack_a_builtin_set(tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_t2i.data import builtin

    monkeypatch.setattr(builtin, "resolve_source", lambda data, resolution, settings: shapes if data == "shapes" else Path(data))
    assert run("pack", "shapes", tmp_path / "packed", "--resolution", 16).exit_code == 0
    monkeypatch.setattr(builtin, "resolve_source", None)  # nothing is made for a folder that is in use
    assert "packed exists and is not empty" in run("pack", "shapes", tmp_path / "packed", "--resolution", 16).stderr


def test_inspect_reports_bad_items(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    rows = [{"file_name": "a.png", "label": "a black square"}, *({"file_name": f"{index}.png", "label": "gone"} for index in range(7))]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run("inspect", tmp_path, "--caption-column", "label", "--json", "-")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["pairs"] == 1
    assert report["bad"] == {"missing image": 7}
    assert len(report["first_bad"]["missing image"]) == 5
    assert report["examples"] == [{"where": "metadata.jsonl:1", "captions": ["a black square"]}]
    assert report["pictures"]["near_empty"]["count"] == 1
    assert TrainConfig.parse(report["recommended"]["config"]).data.caption_column == "label"
    assert "missing image: 7" in run("inspect", tmp_path, "--caption-column", "label").output


def test_inspect_writes_files_and_prints(shapes: Path, tmp_path: Path) -> None:
    result = run("inspect", shapes, "--json", tmp_path / "report.json", "--html", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert "words that flips would falsify: " in result.stdout
    assert json.loads((tmp_path / "report.json").read_text())["pairs"] == 30
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "written: " in result.stderr
    (tmp_path / "file").write_text("")
    refused = run("inspect", shapes, "--html", tmp_path / "file/report.html")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "cannot write" in refused.stderr
    again = run("inspect", shapes, "--json", tmp_path / "report.json", "--html", tmp_path / "report.html", "--on-bad", "error")
    assert again.stderr.count("exists and is replaced") == 2
    assert "--write FILE` and the options given here" in again.stdout


def test_pack_redacts(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a square by a@example.org")
    result = run("pack", tmp_path, tmp_path / "packed", "--resolution", 16, "--redact")
    assert "redacted in captions: 1 email" in result.output
    assert PackedDataset.open(tmp_path / "packed").captions == ["a square by"]


def test_pack_augments_captions(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("black, square, dull")
    options = ("--caption-form", "a picture of {}", "--caption-dropout", "0.5", "--caption-shuffle")
    result = run("pack", tmp_path, tmp_path / "packed", "--resolution", 16, *options)
    assert "every caption in 2 forms: {}, a picture of {}" in result.output
    assert "up to 3 more of every training caption, with 50% of the words dropped and the tags shuffled" in result.output
    captions = PackedDataset.open(tmp_path / "packed").captions
    assert captions[0] == "black, square, dull"
    assert "a picture of black, square, dull" in captions
    refused = run("pack", tmp_path, tmp_path / "other", "--caption-dropout", "1")
    assert refused.exit_code == 2
    assert "config key caption_dropout = 1.0: input should be less than 1" in refused.output


def test_inspect_refuses_a_missing_source(tmp_path: Path) -> None:
    result = run("inspect", tmp_path / "missing")
    assert result.exit_code == 2
    assert "does not exist" in result.output


@pytest.mark.parametrize(
    "arguments", [["--help"], ["make", "--help"], ["make", "shapes", "--help"], ["make", "emoji", "--help"], ["pack", "--help"]]
)
def test_help(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 0


def test_inspect_shows_each_of_two_captions(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        Image.new("RGB", (16, 16), name).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"all {name}\n", encoding="utf-8")
    output = run("inspect", tmp_path).output
    assert '"all blue"' in output
    assert '"all red"' in output


def test_pack_and_inspect_take_any_format_and_its_options(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGBA", (32, 16), (0, 0, 0, 0)).save(tmp_path / "data/a.png")
    (tmp_path / "data/a.caption").write_text("one\ntwo\n", encoding="utf-8")
    archive = shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "data")
    options = ("--data-format", "pairs", "--caption-lines", "first", "--on-bad", "error")
    shown = run("inspect", archive, *options).output
    assert "1 usable pair, 1 caption; no split given, so training holds out 10%" in shown
    assert "1 picture is too few for an autoencoder, which needs 64, and for the mismatch loss, which needs 2\n" in shown
    result = run("pack", archive, tmp_path / "packed", "--resolution", 16, *options, "--crop", "pad", "--background", "#0000ff")
    assert result.exit_code == 0, result.output
    packed = PackedDataset.open(tmp_path / "packed")
    assert packed.captions == ["one"]
    assert packed.images[0, :, 8, 8].tolist() == [0, 0, 255]
    assert f"fingerprint {packed.fingerprint}" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data-format", "word"), "config key format = 'word': input should be 'auto', 'imagefolder', "),
        (("--data-format", "cub"), "is not in the format cub: it has no train/filenames.pickle"),
        (("--caption-lines", "last"), "config key caption_lines = 'last': input should be 'first' or 'all'"),
        (("--crop", "middle"), "config key crop = 'middle': input should be 'center', 'fit' or 'pad'"),
        (("--background", "plaid"), "config key background: 'plaid' is not a colour such as white or #ffeecc"),
        (("--image-root", "nowhere"), "image_root nowhere is not a folder"),
    ],
)
def test_pack_refuses_wrong_options(shapes: Path, tmp_path: Path, options: tuple[str, str], message: str) -> None:
    result = run("pack", shapes, tmp_path / "packed", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "packed").exists()


def test_train_passes_the_same_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_t2i.doctor import dry_run as estimate

    seen: list[TrainConfig] = []
    monkeypatch.setattr(estimate, "dry_run_report", lambda config: seen.append(config))
    arguments = (
        "--data-format coco --image-root pictures --caption-lines first --crop fit --background black --caption-column x --on-bad error "
        "--alpha --foreground red --flags --skin-tones"
    )
    result = CliRunner().invoke(command, ["train", "--dry-run", "--preset", "quickstart", "--data", "captions.json", *arguments.split()])
    assert result.exit_code == 0, result.output
    assert seen[0].data.model_dump() == {
        "source": "captions.json",
        "format": "coco",
        "image_root": "pictures",
        "caption_lines": "first",
        "crop": "fit",
        "background": "black",
        "foreground": "red",
        "alpha": True,
        "caption_column": "x",
        "caption_forms": ("{}",),
        "caption_dropout": 0.0,
        "caption_shuffle": False,
        "recolour": 0,
        "flags": True,
        "skin_tones": True,
        "on_bad": "error",
        "redact": False,
        "holdout_fraction": 0.02,
        "stream": False,
        "shuffle_buffer": 10000,
        "recolour_share": 1.0,
        "caption_weights": (1.0,),
    }
