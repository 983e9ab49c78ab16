"""table.py: the workload `table`, where worker processes only cost."""

import pickle
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.data import default_collate

from feedrate.trainables.bundled.table import table
from feedrate.trainables.step import StepContext
from feedrate.trainables.workload import WorkloadError


@pytest.mark.parametrize(("num_workers", "context"), [(0, None), (2, "fork")])
def test_batches_are_rows_with_labels(num_workers, context):
    """Float rows (batch, features) and int64 labels; an epoch is every row once."""
    workload = table(num_rows=100, num_features=8)
    loader = workload.make_loader(batch_size=32, num_workers=num_workers, multiprocessing_context=context)
    batches = list(loader)
    assert [len(rows) for rows, _ in batches] == [32, 32, 32, 4]
    assert batches[0][0].dtype == torch.float32
    assert batches[0][1].dtype == torch.int64
    seen = torch.cat([rows for rows, _ in batches])
    assert len(seen.unique(dim=0)) == 100
    pickle.loads(pickle.dumps((workload.dataset, workload.collate_fn)))  # what a spawned worker gets


def test_a_batch_is_the_same_as_its_samples():
    """Looking up a whole batch gives what single look-ups and torch's collate give, and the rows are cycled."""
    workload = table(num_rows=10, num_features=4, epoch_samples=25)
    rows = workload.dataset
    assert len(rows) == 25
    indices = [0, 9, 10, 24]
    singly = workload.collate_fn([rows[index] for index in indices])
    at_once = workload.collate_fn(rows.__getitems__(indices))
    assert all(torch.equal(one, other) for one, other in zip(singly, at_once, strict=True))
    assert torch.equal(rows[24][0], rows[4][0])
    assert torch.equal(singly[0], default_collate([rows[index] for index in indices])[0])
    assert len(list(rows)) == 25


def test_the_rows_are_the_same_in_every_process_and_teach_something():
    """They do not depend on the global seed, and do not disturb it; training lowers the loss."""
    torch.manual_seed(1)
    first = table(num_rows=2000).dataset
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first.rows, table(num_rows=2000).dataset.rows)
    losses = []
    workload = table(num_rows=2000, epoch_samples=8000)
    criterion = torch.nn.CrossEntropyLoss.forward

    def record(self, scores, labels):
        loss = criterion(self, scores, labels)
        losses.append(loss.item())
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.CrossEntropyLoss, "forward", record)
        step = workload.make_step(StepContext(device=torch.device("cpu"), batch_size=64))
        for batch in workload.make_loader(batch_size=64):
            step(batch)
    assert losses[-1] < 0.7 * losses[0]


def test_zero_workers_win():
    """In the recorded grid (docs/benchmarks.md), loading without workers is faster than with any number of them, at each batch size."""
    grid = pd.read_parquet(Path(__file__).parents[3] / "benchmarks" / "landscapes" / "table.parquet")
    for _, rows in grid.groupby("batch_size"):
        sps = rows.groupby("num_workers")["sps"].median()
        assert sps[0] > 1.2 * sps.drop(0).max()


@pytest.mark.parametrize("option", ["num_rows", "num_features", "epoch_samples"])
def test_impossible_options_are_refused(option):
    """Each by its name."""
    with pytest.raises(WorkloadError, match=f"{option} must be 1 or more, not 0"):
        table(**{option: 0})
