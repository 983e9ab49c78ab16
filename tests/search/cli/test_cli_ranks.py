"""A training in several ranks on the command line: `feedrate COMMAND ... -- torchrun --nproc-per-node 2 train.py`."""

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import records

from feedrate.search.cli.main import main

TRAIN = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

class Rows(Dataset):
    def __len__(self):
        return 4000
    def __getitem__(self, index):
        return torch.full((8,), float(index)), index % 2

if __name__ == "__main__":
    model, data, sampler = nn.Linear(8, 2), Rows(), None
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        model, sampler = nn.parallel.DistributedDataParallel(model), DistributedSampler(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    while True:
        for x, y in DataLoader(data, batch_size=16, sampler=sampler, num_workers=1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
"""
TORCHRUN = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2", "train.py"]


@pytest.mark.slow
def test_a_search_measures_all_ranks_and_its_answer_is_theirs(feedrate, mine, tmp_path, capfd):
    """Ray reserves the host once for all ranks. It starts Ray, and torchrun for the description and for the trials."""
    mine("")
    Path("train.py").write_text(TRAIN)
    asked = ["--num-workers", "1..2", "--max-trial-s", "1", "--max-trials", "1", "--no-confirm", "--time-budget", "60s", "--out", "run"]
    search = feedrate("search", *asked, "--", *TORCHRUN)
    assert search.code == 0, search.stderr
    assert not search.alive()
    run = tmp_path / "run"
    for record in records(run):
        assert [each["rank"] for each in record["ranks"]] == [0, 1]
        assert record["window_num_items"] == [32 * number for number in record["window_num_batches"]]
    best = json.loads((run / "best.json").read_text())
    assert (best["scope"]["world_size"], best["scope"]["ranks_per_host"]) == (2, 2)
    assert best["scope"]["cpus_per_rank"] == len(os.sched_getaffinity(0)) / 2
    assert best["scope"]["slowest_rank"] in (0, 1)
    assert best["throughput"]["per"] == "world"
    assert best["workload"]["epoch_samples"] == 4000
    assert main(["verify", "run", "--", sys.executable, "train.py"]) == 2
    assert "run is the answer for 2 ranks, and this command trains in 1: start as many ranks as in the search" in capfd.readouterr().err

WORKLOAD = """
import torch
from torch import nn
from torch.utils.data import Dataset
from feedrate.trainables import Workload

class Rows(Dataset):
    def __len__(self):
        return 4096
    def __getitem__(self, index):
        return torch.full((8,), float(index)), index % 2

def rows():
    return Workload(
        name="rows", dataset=Rows, model=lambda: nn.Linear(8, 2), loss=nn.CrossEntropyLoss(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01)
    )
"""


def test_a_workload_trains_in_ranks(tmp_path, monkeypatch, capfd):
    """Started by torchrun, with gradients exchanged and the samples shared out. Over 10 s: torchrun imports torch, and so does each rank."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(WORKLOAD)
    assert main(["measure", "mine.py:rows", "--ranks", "2", "--num-workers", "1", "--max-trial-s", "1", "--json"]) == 0
    columns = json.loads(capfd.readouterr().out)["measurement"]
    assert [each["rank"] for each in columns["ranks"]] == [0, 1]
    assert columns["window_num_items"] == [2 * 32 * number for number in columns["window_num_batches"]]
    assert columns["epoch_samples"] == 4096


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["table", "--ranks", "1"], "must be 2 or more, not 1"),
        (["table", "--ranks", "2", "--amp", "bf16"], "--amp and --ranks do not go together"),
        (["--ranks", "2", "--", "python", "train.py"], "--ranks is for a WORKLOAD: start the ranks of a training command with its own launcher"),
    ],
)
def test_ranks_that_cannot_be_started_are_refused(words, sentence, capfd):
    assert main(["measure", *words]) == 2
    assert sentence in capfd.readouterr().err
