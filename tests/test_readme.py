"""What the README tells people to type exists; the first command's two steps run for real, on fewer pictures."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gan_t2i.cli.main import command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
COMMANDS = [part.strip() for line in SHELL for part in line.split("&&") if part.strip().startswith("gan-t2i ")]


def test_readme_opens_with_a_picture_and_two_commands() -> None:
    figure = re.search(r"!\[.*?\]\((.*?)\)", README)
    assert figure
    assert (ROOT / figure[1]).stat().st_size < 300_000
    assert SHELL[0].endswith('gan-t2i sample latest -p "a red heart above a blue star" --seeds 0-3 --grid out.png')
    assert SHELL[1].endswith("&& pytest")
    assert all("pip install -e" in line for line in SHELL[:2])


@pytest.mark.parametrize("line", COMMANDS)
def test_command_parses(line: str) -> None:
    arguments = shlex.split(line)[1:]
    result = CliRunner().invoke(command, [*arguments, "--help"])
    assert result.exit_code == 0, result.output
    for index, argument in enumerate(arguments):
        if argument == "--config":
            written = COMMANDS[: COMMANDS.index(line)]  # by an earlier command
            config = arguments[index + 1]
            assert (ROOT / config).is_file() or any(f"--write {config}" in earlier for earlier in written)


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!https?:)[^)#]+)\)", README))
def test_linked_file_exists(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.slow
def test_quickstart_runs(tmp_path: Path) -> None:
    train, sample = (shlex.split(part)[1:] for part in COMMANDS[:2])
    run = [sys.executable, "-m", "gan_t2i"]
    config = ROOT / train[train.index("--config") + 1]
    subprocess.run([*run, "train", "--config", str(config), "--kimg", "1"], cwd=tmp_path, check=True)
    subprocess.run([*run, *sample], cwd=tmp_path, check=True)
    assert (tmp_path / "out.png").stat().st_size > 1000
