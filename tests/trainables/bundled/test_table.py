"""table.py: the workload `table`, where worker processes only cost."""

import itertools
import pickle
import time

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


@pytest.fixture
def one_thread():
    """Two threads that wait for each other on a busy machine would hide what the loader costs."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("one_thread")
def test_zero_workers_win():
    """Training with two workers is slower than with none, at the smallest and largest batch size of a search."""

    def samples_per_second(num_workers, batch_size):
        workload = table()
        step = workload.make_step(StepContext(device=torch.device("cpu"), batch_size=batch_size))
        batches = iter(workload.make_loader(batch_size=batch_size, num_workers=num_workers))
        for batch in itertools.islice(batches, 20):
            step(batch)
        rates = []
        for _ in range(5):  # the best of short stretches: other load on the machine only lowers a rate
            start = time.perf_counter()
            for batch in itertools.islice(batches, 40):
                step(batch)
            rates.append(40 * batch_size / (time.perf_counter() - start))
        return max(rates)

    for batch_size in (32, 128):
        assert samples_per_second(0, batch_size) > 1.2 * samples_per_second(2, batch_size)


@pytest.mark.parametrize("option", ["num_rows", "num_features", "epoch_samples"])
def test_impossible_options_are_refused(option):
    """Each by its name."""
    with pytest.raises(WorkloadError, match=f"{option} must be 1 or more, not 0"):
        table(**{option: 0})
