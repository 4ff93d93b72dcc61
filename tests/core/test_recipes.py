"""The shipped recipes by name, in a checkout and in a wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gan_t2i.core import recipes
from gan_t2i.core.errors import UsageError

ROOT = Path(__file__).parents[2]


def test_a_recipe_is_found_by_its_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"quickstart", "emoji64", "base256"} <= set(recipes.names())
    assert "\nresolution: 64\n" in recipes.find("quickstart").read_text()


def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"there is no recipe .quikstart.; did you mean quickstart\?"):
        recipes.find("quikstart")
    with pytest.raises(UsageError, match=r"there is no recipe '\.\./setup'; allowed: base256, "):
        recipes.find("../setup")


def test_an_argument_is_a_file_or_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipes.path_of("quickstart") == recipes.find("quickstart")
    Path("quickstart").touch()
    for own in ("quickstart", "mine.yaml", "folder/mine"):
        assert recipes.path_of(own) == Path(own)


def test_the_installed_recipes_are_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "_PACKAGE", tmp_path / "gan_t2i")
    for folder in (tmp_path / "configs", tmp_path / "gan_t2i" / "recipes"):
        folder.mkdir(parents=True)
        (folder / "mine.yaml").touch()
        assert recipes.find("mine") == folder / "mine.yaml"


@pytest.mark.slow
def test_a_wheel_holds_the_recipes_and_every_module(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="68")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("gan_t2i", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("gan_t2i/")}
    assert {f"gan_t2i/recipes/{name}.yaml" for name in recipes.names()} == {name for name in held if name.startswith("gan_t2i/recipes/")}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "gan_t2i").rglob("*.py")} <= held
    assert {"gan_t2i/py.typed", "gan_t2i/pretrained/shapes64.safetensors", "gan_t2i/evaluation/shapes/prompts.json"} <= held
    assert {"gan_t2i/sampling/onnx_readme.md", "gan_t2i/serving/page.html", "gan_t2i/serving/engine.js"} <= held
