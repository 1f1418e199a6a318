from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

from tests.helpers.warm import few_steps

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@every_notebook
def test_notebook_was_committed_with_outputs(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    assert all(cell.execution_count for cell in code)


@pytest.mark.filterwarnings("default")  # of figures that are shown nowhere
@every_notebook
def test_notebook_runs(path, monkeypatch):
    """Cell by cell in a shell of IPython; where it says nothing of the number of steps there are few."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(path.parent)
    for change in few_steps(4):
        monkeypatch.setitem(*change)
    shell = InteractiveShell()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()


@pytest.mark.filterwarnings("default")  # of the kernel's machinery, not ours
def test_a_notebook_runs_in_a_kernel():
    """Its first cell, which imports and loads: a kernel has streams, signals and progress bars of its own."""
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    call = nbformat.v4.new_code_cell("pipe([''], num_inference_steps=2).texts")
    notebook.cells = [first, call]
    NotebookClient(
        notebook, timeout=120, startup_timeout=120, resources={"metadata": {"path": str(NOTEBOOKS[0].parent)}}
    ).execute()
