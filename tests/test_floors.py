"""Imports run downward only, click stays in cli/, and the command answers without torch. CONTRIBUTING.md draws the floors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gan_t2i

ROOT = Path(gan_t2i.__file__).parent
FLOORS = [
    {"core"},
    {"registry", "ops", "runs"},
    {"text"},
    {"data", "models"},
    {"checkpoint"},
    {"pretraining", "sampling"},
    {"losses", "evaluation"},
    {"training"},
    {"doctor"},
    {"api"},
    {"serving"},
    {"cli"},
]
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}
# The lazy front door and `python -m`.
EXEMPT = {"__init__.py", "__main__.py"}
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.relative_to(ROOT).as_posix() not in EXEMPT)


def imported(source: str, module: list[str]) -> set[str]:
    """Full dotted names that a module imports, wherever in it; `module` is its package's parts, for relative imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module[: len(module) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def faults(path: Path, source: str) -> list[str]:
    """List the forbidden imports of the module at `path`, relative to the package."""
    part = path.parts[0].removesuffix(".py")
    if part not in FLOOR:
        return [f"{path}: {part} has no floor"]
    result = []
    for name in sorted(imported(source, ["gan_t2i", *path.parent.parts])):
        package, *inside = name.split(".")
        if package == "click" and part != "cli":
            result.append(f"{path}: imports click")
        if package != "gan_t2i" or inside[:1] == ["__version__"]:
            continue
        target = inside[0] if inside else "gan_t2i"
        if target == part:
            continue
        if target not in FLOOR:  # the lazy front door leads to sampling
            result.append(f"{path}: imports {name}, which has no floor")
        elif FLOOR[target] >= FLOOR[part]:
            result.append(f"{path}: imports {name}, from floor {FLOOR[target]} into floor {FLOOR[part]}")
    return result


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_run_downward_only(path):
    assert faults(path, (ROOT / path).read_text(encoding="utf-8")) == []


def test_every_part_was_walked():
    assert {path.parts[0].removesuffix(".py") for path in MODULES} >= {"cli", "training", "sampling", "checkpoint", "models", "ops", "core"}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/attention.py", "from gan_t2i.models.base import Generator"),
        ("ops/attention.py", "import gan_t2i.registry"),
        ("ops/attention.py", "from gan_t2i import registry"),
        ("ops/attention.py", "from ..models import base"),
        ("ops/attention.py", "from .. import models"),
        ("ops/attention.py", "def f():\n    from gan_t2i.training.loop import train"),
        ("ops/attention.py", "if TYPE_CHECKING:\n    from gan_t2i.training.loop import train"),
        ("ops/attention.py", "from gan_t2i.losses.penalties import gradient_penalty"),
        ("core/config.py", "from gan_t2i.ops.layers import linear"),
        ("registry.py", "from gan_t2i.text.batch import TextBatch"),
        ("text/cache.py", "from gan_t2i.data.records import Record"),
        ("data/packing.py", "from gan_t2i.models.base import Generator"),
        ("models/generators/style.py", "from gan_t2i.checkpoint import BuildSpec"),
        ("models/generators/style.py", "from ...checkpoint import BuildSpec"),
        ("checkpoint.py", "from gan_t2i.sampling import Text2Image"),
        ("checkpoint.py", "from gan_t2i.evaluation.match_gap import match_gap"),
        ("checkpoint.py", "from gan_t2i import Text2Image"),
        ("checkpoint.py", "import gan_t2i"),
        ("sampling/pipeline.py", "from gan_t2i.training.config import TrainConfig"),
        ("pretraining/loop.py", "from gan_t2i.sampling.pipeline import Text2Image"),
        ("losses/adversarial.py", "from gan_t2i.training.step import TrainStep"),
        ("training/loop.py", "from gan_t2i.cli.main import main"),
        ("training/loop.py", "from gan_t2i.doctor.machine import examine"),
        ("training/loop.py", "import click"),
        ("doctor/plan.py", "from gan_t2i.api import train"),
        ("sampling/pipeline.py", "from click.testing import CliRunner"),
        ("attic.py", ""),
    ],
)
def test_an_import_that_runs_upward_or_sideways_is_caught(path, source):
    assert len(faults(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli/train.py", "import click\nfrom gan_t2i.training.loop import train\nfrom gan_t2i.core.config import read_yaml"),
        ("training/loop.py", "from gan_t2i.training.step import TrainStep\nfrom .state import save_state\nfrom gan_t2i import __version__"),
        ("models/generators/style.py", "from ..base import Generator\nfrom gan_t2i.ops.layers import linear"),
        ("text/tiny.py", "from gan_t2i import registry\nimport torch.nn"),
        ("api.py", "from gan_t2i.doctor.plan import make_plan"),
        ("doctor/bench.py", "from gan_t2i.training.session import prepare\nfrom gan_t2i.sampling.pipeline import Text2Image"),
        ("ops/modulated_conv.py", "from gan_t2i.core.runtime import autocast_off\nfrom gan_t2i.ops.layers import linear"),
    ],
)
def test_an_import_that_runs_downward_is_not(path, source):
    assert faults(Path(path), source) == []


def test_the_command_starts_without_torch():
    code = """if True:
        import importlib, sys
        import gan_t2i
        from gan_t2i.cli.main import COMMANDS
        for name in COMMANDS:
            importlib.import_module(f"gan_t2i.cli.{name}")
        heavy = {"torch", "transformers", "sentence_transformers", "numpy", "PIL", "pydantic"} & sys.modules.keys()
        print(*sorted(COMMANDS), "|", *sorted(heavy))
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    commands, heavy = result.stdout.split("|")
    assert {"train", "sample", "data", "info"} <= set(commands.split())
    assert heavy.split() == []


def test_the_front_door_leads_to_sampling_and_training():
    from gan_t2i import api
    from gan_t2i.sampling import Text2Image

    assert gan_t2i.Text2Image is Text2Image
    assert (gan_t2i.train, gan_t2i.Run) == (api.train, api.Run)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        gan_t2i.Nothing  # noqa: B018
