"""Bad input gives one sentence on stderr and the right exit code, and leaves nothing half written.

Exit codes: 2 for what the caller got wrong on the command line or in a config, 1 for what is wrong with data, files or the run.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from gan_t2i.cli.main import command
from gan_t2i.runs import RunFolder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def assert_refused(here: Path) -> Callable[..., None]:
    """Runs the command in an own folder; checks the exit code, the one sentence, and that no file or folder came or went."""

    def run(code: int, sentence: str, *arguments: object) -> None:
        before = sorted(here.rglob("*"))
        result = CliRunner().invoke(command, [*map(str, arguments)])
        assert result.exit_code == code, result.output
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
        assert line == result.stderr.splitlines()[-1]
        assert sentence in line
        assert "Traceback" not in result.output
        assert sorted(here.rglob("*")) == before

    return run


@pytest.fixture
def config(small_config: Callable[..., Any], here: Path) -> Path:
    path = here / "small.yaml"
    path.write_text(yaml.safe_dump(small_config()), encoding="utf-8")
    return path


def rewrite(snapshot: Path, path: Path, **changes: Any) -> Path:
    """A copy of a snapshot with other metadata."""
    with safetensors.safe_open(snapshot, framework="pt") as file:
        metadata = {**json.loads(file.metadata()["gan_t2i"]), **changes}
    save_file(load_file(snapshot), path, metadata={"gan_t2i": json.dumps(metadata)})
    return path


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--set", "bacth=8"], "unknown config key bacth; did you mean batch?"),
        (["--set", "optimizer.glr=1"], "unknown config key optimizer.glr; did you mean g_lr?"),
        (["--set", "generator.params.chanel_max=1"], "unknown config key generator.params.chanel_max; did you mean channel_max?"),
        (["--set", "batch=many"], "config key batch = 'many': input should be a valid integer"),
        (["--set", "batch=0"], "config key batch = 0"),
        (["--set", "optimizer=3"], "config key optimizer = 3"),
        (["--set", "batch"], "--set batch: write it as key.subkey=value"),
        (["--set", "resolution=48"], "config key resolution: 48 is not a power of two from 16 to 512"),
        (["--set", "generator.name=styel"], "unknown generator 'styel'; did you mean style?"),
        (["--set", "loss=wgan"], "config key loss: 'wgan' is not an adversarial loss"),
        (["--set", "accumulation=3"], "batch 4 must be a multiple of accumulation 3"),
        (["--set", "batch=1"], "terms.mismatch needs a batch of at least two images"),
        (["--set", "device=cuda:99"], "device 'cuda:99' cannot be used here"),
        (["--set", "device=tpu9"], "allowed: auto, cpu, cuda, cuda:N, mps"),
        (["--data", "nowhere"], "data nowhere does not exist"),
        (["--resume", "nowhere"], "--resume nowhere: nowhere has no state to go on from"),
        (["--outdir", "small.yaml/runs"], "no run folder can be made in small.yaml/runs, as "),
        (["--outdir", "small.yaml"], "'small.yaml' is a file"),
        (["--config", "missing.yaml"], "cannot read config missing.yaml: No such file or directory"),
        (["--kimg", "long"], "'long' is not a valid float"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_with_a_wrong_option(config: Path, assert_refused: Callable[..., None], options: list[str], sentence: str) -> None:
    assert_refused(2, sentence, "train", "--config", config, *options)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("batch: [1", "config bad.yaml is not YAML"),
        ("- batch", "must hold a mapping"),
        ("", "config bad.yaml is empty"),
        ("data: 3", "config key data"),
    ],
)
def test_train_with_a_wrong_file(here: Path, assert_refused: Callable[..., None], text: str, sentence: str) -> None:
    (here / "bad.yaml").write_text(text)
    assert_refused(2, sentence, "train", "--config", "bad.yaml")
    assert_refused(2, sentence, "train", "--config", "bad.yaml", "--data", ".")


def test_train_without_a_usable_pair(config: Path, here: Path, assert_refused: Callable[..., None]) -> None:
    data = here / "data"
    data.mkdir()
    assert_refused(1, "data", "train", "--config", config, "--data", data)
    Image.new("RGB", (24, 24)).save(data / "a.png")
    assert_refused(1, "data", "train", "--config", config, "--data", data)
    (data / "b.png").write_bytes(b"no picture")
    (data / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "a thing"}\n')
    assert_refused(1, "no usable pair", "train", "--config", config, "--data", data)


def test_train_with_one_caption_for_all(config: Path, here: Path, assert_refused: Callable[..., None]) -> None:
    data = here / "data"
    data.mkdir()
    rows = []
    for number in range(6):
        Image.new("RGB", (24, 24), (40 * number, 0, 0)).save(data / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": "a thing"}))
    (data / "metadata.jsonl").write_text("\n".join(rows))
    assert_refused(1, "all pictures have the same caption", "train", "--config", config, "--data", data)
    result = CliRunner().invoke(
        command, ["train", "--config", str(config), "--data", str(data), "--set", "terms.mismatch.weight=0", "--kimg", "0.004"]
    )
    assert result.exit_code == 0, result.output  # as the sentence says


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (1, "a single pair cannot be told apart from others; add pictures, or set terms.mismatch.weight=0"),
        (2, "a single picture is left to train on, as the others are held out, and it cannot be told apart from any other; set "),
    ],
)
def test_train_with_too_few_pictures_to_tell_apart(
    config: Path, here: Path, assert_refused: Callable[..., None], count: int, sentence: str
) -> None:
    data = here / "data"
    data.mkdir()
    for number in range(count):
        Image.new("RGB", (24, 24), (40 * number, 0, 0)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(f"thing {number}\nitem {number}\n")
    assert_refused(1, sentence, "train", "--config", config, "--data", data)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", ""], "prompt 1 is empty: say what to draw"),
        (["-p", "red", "-p", "  "], "prompt 2 is empty: say what to draw"),
        ([], 'no prompt: give -p "..." or --prompts FILE'),
        (["--prompts", "blank.txt"], 'no prompt: give -p "..." or --prompts FILE'),
        (["--prompts", "latin1.txt"], "--prompts latin1.txt: it is not UTF-8 text"),
        (["--prompts", "missing.txt"], "missing.txt"),
        (["-p", "red", "--outdir", "blank.txt/out"], "cannot write blank.txt/out/red-seed0.png: "),
        (["-p", "red", "--outdir", "blank.txt"], "'blank.txt' is a file"),
        (["-p", "red", "--grid", "blank.txt/grid.png"], "cannot write blank.txt/grid.png: "),
        (["-p", "red", "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sample_with_a_wrong_option(
    trained: RunFolder, here: Path, assert_refused: Callable[..., None], arguments: list[str], sentence: str
) -> None:
    (here / "blank.txt").write_text("\n  \n")
    (here / "latin1.txt").write_bytes("grün\n".encode("latin-1"))
    assert_refused(2, sentence, "sample", trained.path, *arguments)


def test_a_prompt_in_the_place_of_the_model(assert_refused: Callable[..., None]) -> None:
    assert_refused(2, 'or --prompts FILE; did you mean -p "a red apple"?', "sample", "a red apple")
    for known in ("latest", "pretrained:shapes64", "."):
        result = CliRunner().invoke(command, ["sample", known])
        assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, 'Error: no prompt: give -p "..." or --prompts FILE')


@pytest.mark.parametrize("name", ["sample", "info"])
def test_what_is_no_snapshot(trained: RunFolder, here: Path, assert_refused: Callable[..., None], name: str) -> None:
    prompt = ["-p", "red"] if name == "sample" else []
    snapshot = trained.snapshot(40)
    assert_refused(
        2,
        "no such run or snapshot: runs/00007-gone; name a run folder, a snapshot file, latest or pretrained",
        name,
        "runs/00007-gone",
        *prompt,
    )
    assert_refused(2, "there is no run with a snapshot in runs/: train one first", name, "latest", *prompt)
    (here / "00000-empty").mkdir()
    assert_refused(2, "00000-empty is no run folder", name, "00000-empty", *prompt)
    (here / "00000-empty" / "config.yaml").touch()
    assert_refused(2, "run 00000-empty has no snapshot yet", name, "00000-empty", *prompt)

    rewrite(snapshot, here / "future.safetensors", format_version=99)
    assert_refused(1, "snapshot future.safetensors has format version 99", name, "future.safetensors", *prompt)
    rewrite(snapshot, here / "lost.safetensors", generator={"kind": "generator", "name": "lost", "params": {}, "interface": {}})
    assert_refused(1, "unknown generator 'lost'", name, "lost.safetensors", *prompt)
    rewrite(snapshot, here / "hollow.safetensors", encoder={})
    assert_refused(1, "snapshot hollow.safetensors is damaged", name, "hollow.safetensors", *prompt)
    (here / "cut.safetensors").write_bytes(snapshot.read_bytes()[:-100])
    assert_refused(1, "cut.safetensors is not a safetensors file, or is damaged", name, "cut.safetensors", *prompt)
    torch.save({"weights": torch.zeros(3)}, here / "pickled.pt")
    assert_refused(1, "pickled.pt is not a safetensors file, or is damaged", name, "pickled.pt", *prompt)
    save_file({"weights": torch.zeros(3)}, here / "foreign.safetensors")
    assert_refused(1, "not one that gan_t2i wrote", name, "foreign.safetensors", *prompt)
    assert_refused(1, "is not a snapshot of gan_t2i but its training state; name a file under snapshots/", name, trained.state, *prompt)
