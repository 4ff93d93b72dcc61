"""The notebook runs from top to bottom, in a folder of its own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own machinery
def test_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [output for output in notebook.cells[-1].outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4
    (run,) = (tmp_path / "runs").iterdir()
    assert len(list((run / "snapshots").iterdir())) >= 1
