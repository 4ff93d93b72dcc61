"""The notebooks run from top to bottom, each in a folder of its own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def pictures_of(name: str, folder: Path) -> list[int]:
    """Run a notebook in `folder`; returns the number of pictures below each cell."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(folder)}}).execute()
    return [sum("image/png" in output.get("data", {}) for output in cell.get("outputs", [])) for cell in notebook.cells]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own machinery
def test_quickstart(tmp_path: Path) -> None:
    assert pictures_of("01_quickstart.ipynb", tmp_path)[-1] == 4
    (run,) = (tmp_path / "runs").iterdir()
    assert len(list((run / "snapshots").iterdir())) >= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_how_words_become_pictures(tmp_path: Path) -> None:
    assert sum(pictures_of("02_how_words_become_pictures.ipynb", tmp_path)) == 7
