"""analysis/trials.ipynb runs, and what it shows on GitHub is what it gives."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "analysis" / "trials.ipynb"


@pytest.mark.filterwarnings("ignore:Proactor event loop", "ignore::DeprecationWarning")  # of jupyter's own
def test_the_notebook_runs_and_shows_what_it_gives():
    """Every cell, in a fresh kernel; the text it prints is the text that is stored, pictures are there."""
    stored = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(fresh, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    for old, new in zip(stored.cells, fresh.cells, strict=True):
        if old.cell_type == "code":
            assert shown(old) == shown(new), f"execute it anew and commit it: {old.source}"
    assert any("image/png" in output.get("data", {}) for cell in stored.cells for output in cell.get("outputs", ()))


def shown(cell):
    """Text of the outputs; of a picture, that there is one."""
    texts = []
    for output in cell.outputs:
        data = output.get("data", {})
        texts.append("picture" if "image/png" in data else output.get("text") or data.get("text/plain"))
    return texts
