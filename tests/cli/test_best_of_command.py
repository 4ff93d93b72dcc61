"""``gan-t2i sample --best-of``: of several seeds, the one that the judge ranks first."""

import json
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from gan_t2i import Text2Image
from gan_t2i.cli.main import command
from gan_t2i.core.files import cache_dir
from gan_t2i.data.packing import load_dataset
from gan_t2i.evaluation.matcher import matcher_judge
from gan_t2i.evaluation.retrieval import prepare_retrieval
from gan_t2i.runs import REPOSITORY, RunFolder
from gan_t2i.sampling import captured
from gan_t2i.sampling.best_of import Best, best_of

PROMPTS = ["a red circle", "blue square"]
BOTH = ["-p", PROMPTS[0], "-p", PROMPTS[1], "--best-of", "4"]


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A copy of the trained run, to write into, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return RunFolder(Path(shutil.copytree(trained.path, tmp_path / "runs" / trained.path.name)))


def sample(model: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, ["sample", str(model), *map(str, arguments)])


@pytest.fixture
def ranked(run: RunFolder, pictures: Path) -> Callable[[Sequence[int]], list[Best]]:
    """The best picture of each prompt among the seeds, by the judge of the run's data, from Python."""

    def rank(seeds: Sequence[int]) -> list[Best]:
        model = Text2Image.load(run.path, device="cpu")
        task = prepare_retrieval(load_dataset(pictures, 16, progress=False), model.encoder, model.device)
        return list(best_of(model, PROMPTS, matcher_judge(task.matcher, model.encoder), seeds=seeds))

    return rank


@pytest.fixture
def last_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every judge rank the last seed first."""

    def judge(*of: Any) -> Callable[[Sequence[Image.Image], str], list[int]]:
        return lambda pictures, prompt: list(range(len(pictures)))

    monkeypatch.setattr("gan_t2i.evaluation.matcher.matcher_judge", judge)


def test_the_best_seed_of_each_prompt_is_written(run: RunFolder, ranked: Callable[[Sequence[int]], list[Best]]) -> None:
    shutil.rmtree(cache_dir() / "matchers", ignore_errors=True)
    first = sample(run.path, *BOTH, "--seeds", 3)
    assert first.exit_code == 0, first.output
    assert re.search(r"matcher: training on \d+ real pictures, .* \(once\)", first.stderr)
    assert "each picture: of the seeds 3-6, the one that the judge matcher ranks first" in first.stderr.splitlines()
    found = ranked(range(3, 7))
    names = [f"out/{stem}-seed{best.seed}.png" for stem, best in zip(("a-red-circle", "blue-square"), found, strict=True)]
    assert first.stdout.splitlines() == names
    assert sorted(str(path) for path in Path("out").iterdir()) == names
    for name, best in zip(names, found, strict=True):
        assert np.array_equal(np.asarray(Image.open(name)), np.asarray(best.picture))
    again = sample("latest", *BOTH, "--seeds", 3, "--judge", "matcher")
    assert again.stdout == first.stdout
    assert "2 of 2 pictures were there already" in again.stderr
    assert "(once)" not in again.stderr


@pytest.mark.usefixtures("last_is_best")
def test_a_file_is_that_of_its_seed(run: RunFolder) -> None:
    assert sample(run.path, "-p", "red", "--seeds", 5).exit_code == 0
    (Path("out") / "blue-seed3.png").write_text("mine")
    result = sample(run.path, "-p", "red", "-p", "blue", "--seeds", 2, "--best-of", 4, "--json")
    assert json.loads(result.stdout) == [
        {"prompt": "red", "seed": 5, "path": "out/red-seed5.png"},
        {"prompt": "blue", "seed": 5, "path": "out/blue.2-seed5.png"},
    ]
    assert "1 of 2 pictures were there already" in result.stderr
    replaced = sample(run.path, "-p", "blue", "--seeds", 0, "--best-of", 4, "--overwrite")
    assert replaced.stdout == "out/blue-seed3.png\n"
    assert (Path("out") / "blue-seed3.png").read_bytes() != b"mine"


@pytest.mark.usefixtures("last_is_best")
def test_a_sheet_of_the_best(run: RunFolder) -> None:
    Path("prompts.txt").write_text("\n".join(PROMPTS))
    result = sample(run.path, "--prompts", "prompts.txt", "--best-of", 4, "--grid", "best.html", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == [{"prompt": prompt, "seed": 3, "path": "best.html"} for prompt in PROMPTS]
    assert re.findall(r'alt="([^"]*)"', Path("best.html").read_text(encoding="utf-8")) == [f"{prompt}, seed 3" for prompt in PROMPTS]
    assert sample(run.path, *BOTH, "--grid", "best.png").stdout == "best.png\n"
    with Image.open("best.png") as sheet:
        assert "gan_t2i" in sheet.info["Software"]


def test_a_stop_leaves_what_is_done_and_every_seed_is_drawn_once(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    to_pictures = captured.to_pictures

    def stop_and_draw(images: Any) -> Any:
        drawn.append(len(images))
        if len(drawn) == 6:
            signal.raise_signal(signal.SIGINT)
        return to_pictures(images)

    monkeypatch.setattr(captured, "to_pictures", stop_and_draw)
    result = sample(run.path, *BOTH, "-p", "green")
    assert result.exit_code == 130
    assert "stopped after 2 of 3 pictures; the same command goes on" in result.stderr
    assert drawn == [1] * 8
    assert sorted(map(str, Path("out").iterdir())) == result.stdout.splitlines()
    assert sample(run.path, *BOTH, "-p", "green").stdout.splitlines()[:2] == result.stdout.splitlines()


def test_without_a_run_there_is_no_judge(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = shutil.copy(run.snapshot(40), tmp_path / "model.safetensors")
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in REPOSITORY:
        (repository / name).touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for model, name in [(snapshot, snapshot), (repository, repository), ("pretrained:shapes64", "pretrained:shapes64"), ("auto", "pretrained")]:
        result = sample(model, "-p", "red", "--best-of", 4)
        assert result.exit_code == 2
        sentence = f"the judge of --best-of is trained on a run's pictures, which {name} is without: name a run folder, or choose among"
        assert result.stderr.splitlines()[-1] == f"Error: {sentence} several --seeds yourself"
        assert not any(empty.iterdir())


@pytest.mark.parametrize(
    ("data", "code", "sentence"),
    [
        ({"source": "nowhere"}, 1, "is trained on the run's pictures: data nowhere does not exist; put them back there, or choose among"),
        ({"stream": True}, 2, "needs the whole data set packed, and data.stream trains without packing it: choose among"),
    ],
)
def test_without_the_run_s_pictures_there_is_no_judge(run: RunFolder, data: dict[str, Any], code: int, sentence: str) -> None:
    config = yaml.safe_load(run.config.read_text())
    config["data"] |= data
    run.config.write_text(yaml.safe_dump(config))
    result = sample(run.path, *BOTH)
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1] == f"Error: the judge of --best-of {sentence} several --seeds yourself"
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "red", "--best-of", "4", "--seeds", "0-3"], "--best-of draws its seeds from the one of --seeds on: give one, not 4"),
        (["-p", "red", "--judge", "matcher"], "--judge goes with --best-of"),
        (["--mix", "red", "blue", "--best-of", "4", "--grid", "a.png"], "--best-of goes with a picture per prompt, not with --mix"),
        (["--interpolate", "red", "blue", "--best-of", "4", "--grid", "a.png"], "--best-of goes with a picture per prompt, not with --interp"),
        (["-p", "red", "--variations", "3", "--best-of", "4", "--grid", "a.png"], "--best-of goes with a picture per prompt, not with --var"),
        (["-p", "red", "--best-of", "1"], "1 is not in the range 2<=x<=256"),
        (["-p", "red", "--best-of", "4", "--judge", "me"], "'me' is not"),
        (["--best-of", "4"], "no prompt"),
        ([*["-p", "red"] * 4000, "--best-of", "256"], "1,024,000 pictures are more than 1,000,000"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(run: RunFolder, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = sample(run.path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "model:" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
