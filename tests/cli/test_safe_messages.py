"""No message lets a terminal obey what stands in a file: names, captions, config keys and values, metadata, other libraries' errors."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from gan_t2i.checkpoint import read_info, read_tensors, write_tensors
from gan_t2i.cli.main import command
from gan_t2i.core.log import visible
from gan_t2i.runs import RunFolder

EVIL = "\x1b[31mevil\x07\x7f\x9b\u202e\u2028"
SHOWN = r"\x1b[31mevil\x07\u007f\u009b\u202e\u2028"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(command, list(map(str, arguments)))
    # the progress bar returns to the line's beginning
    unsafe = {character for character in result.output if unicodedata.category(character) in ("Cc", "Cf", "Zl")} - {"\n", "\r"}
    assert not unsafe, (unsafe, result.output)
    assert isinstance(result.exception, SystemExit | None)
    return result


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EVIL, SHOWN),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\udcff\U000e0001\ue000\ufeff", r"\udcff\udb40\udc01\ue000\ufeff"),
        ("naïve 猫 👩\u200d🚀 न\u094d\u200c \u00a0", None),
    ],
)
def test_what_is_escaped(text: str, shown: str | None) -> None:
    assert visible(text) == (text if shown is None else shown)
    assert json.loads(f'"{visible(EVIL[5:])}"'.replace(r"\x07", "")) == EVIL[5:].replace("\x07", "")  # JSON stays JSON


def test_columns_file_names_and_captions(pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / f"set{EVIL}"
    data.mkdir()
    for number, name in enumerate(("red-circle.png", "blue-square.png", "green-circle.png")):
        shutil.copy(pictures / name, data / f"{number}.png")
    shutil.copy(pictures / "red-circle.png", data / f"{EVIL}\n.png")
    (data / "metadata.csv").write_text(f"file_name,{EVIL[:-1]}\n0.png,a\n", encoding="utf-8")
    refused = run("data", "pack", data, tmp_path / "packed", "--resolution", 16)
    assert refused.exit_code == 2
    assert SHOWN[:-6] in refused.output
    assert refused.output.count("\n") == 1
    (data / "metadata.csv").write_text("file_name,text\n0.png,a \u202e b\n1.png,two\n2.png,three\n", encoding="utf-8")
    packed = run("data", "pack", data, tmp_path / "packed", "--resolution", 16)
    assert packed.exit_code == 0
    assert r"a \u202e b" in packed.output
    assert run("data", "inspect", data).exit_code == 0
    assert json.loads(run("data", "inspect", data, "--json", "-").stdout)["source"].endswith(f"set{EVIL}")
    column = "a\\nb"
    (data / "metadata.csv").write_text(f'file_name,"{column.encode().decode("unicode_escape")}"\n0.png,a\n1.png,b\n', encoding="utf-8")
    named = run("data", "pack", data, tmp_path / "again", "--resolution", 16, "--caption-column", "a\nb")
    assert f'captions from column "{column}" of metadata.csv' in named.output


@pytest.mark.parametrize(
    "values", [{EVIL: 1}, {"device": EVIL}, {"generator": {"name": EVIL}}, {"data": {"source": EVIL}}, {"terms": {EVIL: {}}}, [EVIL]]
)
def test_keys_and_values_of_a_config(values: Any, small_config: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / f"{EVIL}.yaml"
    config.write_text(yaml.safe_dump({**small_config(), **values} if isinstance(values, dict) else values), encoding="utf-8")
    result = run("train", "--config", config, "--outdir", tmp_path / "runs")
    assert result.exit_code == 2
    assert r"\x1b[31mevil" in result.output


def test_what_a_library_says_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(f"{EVIL[:5]}: [\n", encoding="utf-8")
    assert run("train", "--config", tmp_path / "bad.yaml").exit_code == 2


@pytest.mark.parametrize(
    "arguments", [[EVIL], ["train", f"--{EVIL}"], ["train", EVIL], ["sample", "--prompts", EVIL], ["sample", EVIL, "-p", "x"]]
)
def test_the_words_of_the_command(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert r"\x1b[31mevil" in result.output


def test_what_a_snapshot_says_of_itself(trained: RunFolder, tmp_path: Path) -> None:
    tensors, metadata = read_tensors(trained.snapshots()[-1])
    name = read_info(trained.snapshots()[-1]).data_name
    path, evil = tmp_path / "evil.safetensors", f"{EVIL}\n"
    write_tensors(path, tensors, json.loads(json.dumps(metadata).replace(json.dumps(name), json.dumps(evil))))
    assert f"{SHOWN}\\n (fingerprint" in run("info", path).output
    assert json.loads(run("info", path, "--json").output)["data"].startswith(evil)
