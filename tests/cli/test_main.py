"""The command as a whole."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from gan_t2i import __version__
from gan_t2i.cli import main as main_module
from gan_t2i.cli import sample
from gan_t2i.cli.main import COMMANDS, command


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")
    # every option says what it is for
    for line in re.findall(r"^  -.*$", result.output, re.MULTILINE):
        assert len(line.split()) > 2, line


def test_the_help_of_sample_has_headings() -> None:
    output = CliRunner().invoke(command, ["sample", "--help"]).output
    headings = re.findall(r"^(\w.*):$", output, re.MULTILINE)
    assert headings == ["What to draw", "Between and around (to --grid)", "Files", "Model"]
    assert all(f"{option} " in output for param in sample.command.params for option in param.opts if option.startswith("--"))


def test_the_module_runs_and_its_help_is_instant() -> None:
    program = "import sys; from gan_t2i.cli.main import command; command(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    heavy = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "'torch'" not in heavy
    assert "'numpy'" not in heavy
    shown = subprocess.run([sys.executable, "-m", "gan_t2i", "--help"], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("Usage: gan-t2i [OPTIONS] COMMAND [ARGS]...")
    assert all(name in shown for name in COMMANDS)


def test_at_its_end_python_looks_for_no_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes longer than a stop may, once torch is there."""
    done: list[str] = []
    monkeypatch.setattr(main_module.threads, "begin", lambda: done.append("threads"))
    monkeypatch.setattr(main_module.gc, "freeze", lambda: done.append("frozen"))
    monkeypatch.setattr(sys, "argv", ["gan-t2i", "train", "--no-such-option"])
    with pytest.raises(SystemExit) as end:
        main_module.main()
    assert (end.value.code, done) == (2, ["threads", "frozen"])


def test_version() -> None:
    result = CliRunner().invoke(command, ["--version"])
    assert (result.exit_code, result.output) == (0, f"gan-t2i, version {__version__}\n")


def test_an_unknown_command() -> None:
    result = CliRunner().invoke(command, ["trian"])
    assert result.exit_code == 2
    assert "trian" in result.stderr


def test_a_fault_of_the_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "pictures/1.png")

    monkeypatch.setattr("gan_t2i.data.builtin.shapes.make_shapes", full)
    result = CliRunner().invoke(command, ["data", "make", "shapes", "out"])
    assert result.exit_code == 1
    assert result.stderr == "Error: pictures/1.png: No space left on device\n"


def test_a_huge_picture_gets_one_sentence(tmp_path: Path) -> None:
    Image.new("1", (10_000, 9_500)).save(tmp_path / "huge.png")
    arguments = ["edit", str(tmp_path / "huge.png"), "-p", "a cat"]
    done = subprocess.run([sys.executable, "-m", "gan_t2i", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "10000 x 9500 pixels, more than" in done.stderr
    assert "Warning" not in done.stderr
