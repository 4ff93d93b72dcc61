"""Commands, Python names and links of the READMEs exist; the two steps of the one-line set-up run for real, on fewer images."""

import ast
import importlib
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gan_t2i.cli.main import command

ROOT = Path(__file__).parents[1]
PATHS = sorted(path for pattern in ("*.md", "configs/**/*.md", "gan_t2i/**/*.md") for path in ROOT.glob(pattern))
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
README = PAGES["README.md"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.S)


def commands(page: str) -> list[str]:
    """All calls of gan-t2i on a page: in shell blocks, plainly or by torchrun, and in code spans, except for those that name alternatives."""
    lines = [line.partition(" #")[0] for block in blocks(page, "sh") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    parts = [re.sub(r"^torchrun .* -m gan_t2i ", "gan-t2i ", part) for part in parts]
    spans = re.findall(r"`((?:time )?gan-t2i [^`|]+)`", re.sub(r"```.*?```", "", page, flags=re.S))
    return [part.removeprefix("time ") for part in parts + spans if part.removeprefix("time ").startswith("gan-t2i ")]


def anchors(page: str) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


SET_UP = [line for block in blocks(README, "sh") for line in block.splitlines() if line.startswith("python3 -m venv")]
MAIN_JOB = [part.strip() for part in SET_UP[0].split("&&") if part.strip().startswith("gan-t2i ")]


def test_readme_is_short() -> None:
    assert len(README.split()) <= 1000
    assert len(PAGES["CONTRIBUTING.md"].splitlines()) <= 150


def test_readme_opens_with_pictures_and_a_command_that_needs_no_training() -> None:
    figure = re.search(r"!\[.*?\]\((.*?)\)", README)
    assert figure
    assert (ROOT / figure[1]).stat().st_size < 300_000
    assert README.index(figure[0]) < README.index("```")
    install, draw = blocks(README, "sh")[0].splitlines()
    assert install == 'pip install -e ".[offline]"'
    assert draw.startswith("gan-t2i sample pretrained -p ")  # without the name, the newest run would draw


def test_the_two_set_up_commands_are_a_line_each() -> None:
    main_job, tests = SET_UP
    start = 'python3 -m venv .venv && . .venv/bin/activate && pip install -e ".['
    assert main_job.startswith(f'{start}offline]" && gan-t2i train ')
    assert main_job.endswith('&& gan-t2i sample latest -p "a red heart above a blue star" --seeds 0-3 --grid out.png')
    assert tests == f'{start}test]" && pytest -n 2'
    for line, words in ((main_job, "**Run the main job**"), (tests, "**Pass the tests**")):
        assert README.index(words) < README.index(line) < README.index(words) + 200


@pytest.mark.parametrize("line", sorted({line for page in PAGES.values() for line in commands(page)}))
def test_command_parses(line: str) -> None:
    arguments = shlex.split(line)[1:]
    result = CliRunner().invoke(command, [*arguments, "--help"])
    assert result.exit_code == 0, result.output
    for option, path in itertools.pairwise(arguments):
        if re.search(r"\b[A-Z]{4,}\b", path):
            continue  # a placeholder
        if option == "--config" or path.startswith("configs/"):
            assert (ROOT / path).is_file()
        if option == "--preset":
            assert (ROOT / "configs" / f"{path}.yaml").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_scripts_are_where_the_page_says(page: str) -> None:
    for path in re.findall(r"\bpython ((?:[\w-]+/)+[\w-]+\.py)", PAGES[page]):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_python_is_python_and_its_names_exist(page: str) -> None:
    for block in blocks(PAGES[page], "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gan_t2i":
                assert hasattr(importlib.import_module("gan_t2i"), node.attr)


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_and_headings_exist(page: str) -> None:
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", PAGES[page], flags=re.S)):
        name, _, fragment = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not fragment or fragment in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.slow
def test_quickstart_runs(tmp_path: Path) -> None:
    train, sample = (shlex.split(part)[1:] for part in MAIN_JOB)
    run = [sys.executable, "-m", "gan_t2i"]
    subprocess.run([*run, *train, "--kimg", "1"], cwd=tmp_path, check=True)
    subprocess.run([*run, *sample], cwd=tmp_path, check=True)
    assert (tmp_path / "out.png").stat().st_size > 1000
