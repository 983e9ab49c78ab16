"""epoch_check.py: samples that change from epoch to epoch, in real workers that repeat the first epoch, lag behind, or follow."""

import random

import numpy as np
import pytest
import torch
from looks import Augmented, Owner, found, step
from torch.utils.data import DataLoader, IterableDataset, Sampler, Subset, get_worker_info
from torch.utils.data.distributed import DistributedSampler
from workloads import Rows, general, short

from feedrate.trainables.checking.check import check
from feedrate.trainables.checking.disqualify import disqualified


class Crops(Rows):
    """Samples depend on an epoch, of which somebody tells the dataset."""

    def __init__(self):
        super().__init__(200)
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        return torch.full((4,), float(index + 1000 * self.epoch)), index % 2


class Growing(Crops):
    """Progressive resizing: larger samples from some epoch on."""

    def __getitem__(self, index):
        return torch.full((4 if self.epoch < 7 else 8,), float(index)), index % 2


class Listed(Crops):
    """A size for each epoch of the training, and no more."""

    def __getitem__(self, index):
        return torch.full(([4, 5, 6][self.epoch],), float(index)), index % 2


class InSharedMemory(Crops):
    """The number of the epoch is one for all workers, as the fix says."""

    def __init__(self):
        super().__init__()
        self.epoch = torch.zeros(1, dtype=torch.long).share_memory_()

    def set_epoch(self, epoch):
        self.epoch.fill_(epoch)


class Counting(Rows):
    """Counts what it has delivered, and makes harder samples in each epoch."""

    num_delivered = 0

    def __init__(self):
        super().__init__(32)

    def __getitem__(self, index):
        self.num_delivered += 1
        return torch.full((4,), float(index + self.num_delivered // 32)), index % 2


class Cached(Rows):
    """The first time, a sample is rounded in another way than from the cache."""

    def __init__(self):
        super().__init__()
        self.cached = {}

    def __getitem__(self, index):
        first = self.cached.setdefault(index, len(self.cached)) == len(self.cached) - 1
        return torch.full((4,), float(index) + 0.001 * first), index % 2


class Unseeded(Rows):
    """Honest randomness of the operating system's."""

    def __getitem__(self, index):
        return torch.full((4,), float(index) + np.random.default_rng().random()), index % 2


class Collates:
    """Multi-scale training: the epoch is known where batches are made."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __call__(self, samples):
        rows, labels = torch.utils.data.default_collate(samples)
        return rows.repeat_interleave(1 + self.epoch % 3, dim=1), labels


class NeedsMany:
    """Makes no batch of a few samples."""

    def __call__(self, samples):
        if len(samples) < 32:
            raise ValueError("the batch is too small")
        return torch.utils.data.default_collate(samples)


class Tells(Sampler):
    """Tells the dataset of the epoch as it begins, of which the training loop may tell it."""

    def __init__(self, dataset):
        self.dataset, self.epoch = dataset, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.dataset)

    def __iter__(self):
        self.dataset.set_epoch(self.epoch)
        yield from torch.randperm(len(self.dataset)).tolist()


class Advances(Tells):
    """Counts the epochs itself, as it comes to their end."""

    def __iter__(self):
        yield from super().__iter__()
        self.epoch += 1


class Batches(Advances):
    """The same as a batch sampler."""

    def __iter__(self):
        self.dataset.set_epoch(self.epoch)
        yield from ([index, index + 1, index + 2] for index in range(0, 60, 3))
        self.epoch += 1


class Shuffled(IterableDataset):
    """A stream that is shuffled by the epoch, and divided among workers."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        order = list(range(64))
        random.Random(self.epoch).shuffle(order)
        for index in order[first::step]:
            yield torch.full((4,), float(index)), index % 2


class CountsItself(Shuffled):
    """Each beginning is a new epoch; nobody else knows."""

    set_epoch = None

    def __iter__(self):
        yield from super().__iter__()
        self.epoch += 1


def sampled(sampler, dataset=Crops):
    def make_loader(**overrides):
        inner = dataset()
        return DataLoader(inner, sampler=sampler(inner), **({"batch_size": 4} | overrides))

    return general(make_loader, step)


def in_batches():
    def make_loader(batch_size=None, **overrides):
        inner = Crops()
        return DataLoader(inner, batch_sampler=Batches(inner), **overrides)

    return general(make_loader, step)


def distributed(dataset):
    return DistributedSampler(dataset, num_replicas=2, rank=0)


FROZEN = {
    "told by the training loop": lambda: short(Crops),
    "inside another dataset": lambda: short(lambda: Subset(Crops(), range(100))),
    "progressive resizing": lambda: short(Growing),
    "no epoch beyond the last": lambda: short(Listed),
    "a stream": lambda: short(Shuffled),
    "collate_fn": lambda: short(Rows(), collate_fn=Collates()),
    "collate_fn of large batches": lambda: short(Crops, collate_fn=NeedsMany()),
}
LAGGING = {
    "sampler tells, and is told": lambda: sampled(Tells),
    "sampler tells, and counts": lambda: sampled(Advances),
    "batch sampler": in_batches,
}


def epochs(make):
    """The check's findings about epochs, in order: level -> evidence."""
    findings = check(make).findings
    return {finding.level: finding for finding in findings if finding.name == "epochs"}


@pytest.fixture(autouse=True)
def _without_starting_interpreters(monkeypatch):
    monkeypatch.setattr("feedrate.trainables.checking.check.start_findings", lambda *more: ([], []))


@pytest.mark.parametrize("name", [*FROZEN, *LAGGING])
def test_a_search_leaves_persistent_workers_out_where_they_freeze_epochs(name):
    """Whoever tells the dataset of its epoch; that other workers are an epoch behind is a note."""
    quick = disqualified((FROZEN | LAGGING)[name])
    assert (quick.persistent_workers, quick.max_num_workers) == (False, None)
    assert "persistent workers keep the copy of the dataset" in quick.epochs_reason
    assert bool(quick.notes) == (name in LAGGING)


def test_epochs_that_persistent_workers_freeze_are_an_error():
    """Others are fine where the training loop tells the dataset."""
    told = epochs(FROZEN["told by the training loop"])
    assert list(told) == ["error"]
    assert told["error"].evidence == {"changes": True, "ending": "follows", "persistent": "frozen"}
    assert told["error"].sentence.startswith("with persistent_workers=True, every epoch delivers the samples of the first one")


def test_workers_that_are_an_epoch_behind_are_warned_of():
    """torch starts them before it asks the sampler, which tells the dataset; the lag is named beside the error."""
    told = epochs(LAGGING["sampler tells, and counts"])
    assert list(told) == ["error", "warning"]
    assert told["warning"].evidence["ending"] == "lags"
    assert "deliver the samples of the previous epoch" in told["warning"].sentence


@pytest.mark.parametrize(("dataset", "level"), [(Counting, "error"), (CountsItself, "warning")])
def test_what_workers_count_themselves_starts_again_with_them(dataset, level):
    """Workers that end with the epoch repeat the first one; persistent ones go on. A stream may be meant so."""
    told = epochs(lambda: short(dataset))
    assert told[level].evidence["ending"] == "frozen"
    assert told[level].sentence.startswith("with persistent_workers=False, every epoch delivers the samples of the first one")
    assert disqualified(lambda: short(dataset)).persistent_workers is True


@pytest.mark.parametrize(
    "make",
    [
        lambda: short(Rows()),
        lambda: short(Augmented(200)),
        lambda: short(Unseeded()),
        lambda: short(Cached),
        lambda: short(InSharedMemory),
        lambda: sampled(Advances, InSharedMemory),
        lambda: sampled(distributed, lambda: Rows(100)),
    ],
    ids=["constant", "augmented", "unseeded", "cached", "shared", "shared and told by the sampler", "distributed"],
)
def test_only_samples_that_change_and_repeat_are_accused(make):
    """Random augmentation, a cache, and a dataset whose workers hear of the epoch pass."""
    quick = disqualified(make)
    assert (quick.persistent_workers, quick.notes) == (None, ())


def test_the_fix_for_frozen_epochs_works():
    """One number in shared memory, for all workers."""
    told = epochs(lambda: sampled(Advances, InSharedMemory))
    assert told["ok"].evidence == {"changes": True, "ending": "follows", "persistent": "follows"}


def test_a_generator_that_starts_again_is_told_once():
    """By the finding that names it."""
    findings = found(short(Owner(np.random.default_rng(0))))
    assert findings["frozen-augmentation"]["level"] == "error"
    assert "epochs" not in findings
