"""The shipped recipes: complete configs by name, for `--preset`. They are the files of configs/, which a wheel holds as gan_t2i/recipes."""

from pathlib import Path

from gan_t2i.core.config import nearest
from gan_t2i.core.errors import UsageError

_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Return the folder of the recipes: the installed one, or in a checkout configs/."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def find(name: str) -> Path:
    """Return the path of a recipe's YAML file; raises `UsageError` with the nearest name where there is no such recipe."""
    if name not in names():
        raise UsageError(f"there is no recipe {name!r}; {nearest(name, names())}")
    return folder() / f"{name}.yaml"


def path_of(argument: str) -> Path:
    """Return the path of a YAML file or, for a bare name that is not a file, of that recipe."""
    path = Path(argument)
    return path if path.is_file() or path.suffix or len(path.parts) > 1 else find(argument)
