"""feedrate in a notebook: a loader and a step that exist in the kernel are tuned there, and a workload in a cell gets the way out."""

import nbformat
import pytest
from nbclient import NotebookClient

LOADER = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from feedrate.trainables import live

model = torch.nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
loader = DataLoader(TensorDataset(torch.arange(640.0).repeat_interleave(8).view(640, 8)), batch_size=16)

def step(batch):
    optimizer.zero_grad()
    model(batch[0]).sum().backward()
    optimizer.step()
    return batch[0][:, 0].tolist()
"""
TRAIN = """
tuned, seen = live(loader, quiet=True), []
for epoch in range(2):
    for batch in tuned:
        seen += step(batch)
tuned.close()
print(seen == 2 * [float(row) for row in range(640)], tuned.summary()["num_batches"])
"""
SEARCH = """
from feedrate.search import run_search
from feedrate.trainables import Workload

def mine():
    return Workload.from_loader(name="mine", make_loader=lambda **changed: loader, make_step=lambda context: step)

try:
    run_search(mine, quiet=True)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.filterwarnings("ignore:Proactor event loop", "ignore::DeprecationWarning")  # of jupyter's own
def test_a_loader_is_tuned_and_a_workload_of_a_cell_gets_the_way_out(tmp_path):
    """It starts a kernel, which imports torch."""
    cells = [nbformat.v4.new_code_cell(source) for source in (LOADER, TRAIN, SEARCH)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    trained, refused = (
        "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout") for cell in notebook.cells[1:]
    )  # tqdm, which Ray imports, may warn on stderr that ipywidgets is missing
    assert trained == "True 80\n"
    assert "UsageError the workload's function 'mine' is defined in a notebook cell or at a prompt" in refused
    assert "write the cell into a file (%%writefile mine.py) and name it, as in 'mine.py:mine'" in refused
    assert "feedrate.trainables.live(loader)" in refused
    assert list(tmp_path.iterdir()) == []
