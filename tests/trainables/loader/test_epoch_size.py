"""epoch_size.py: samples of an epoch from the dataset and the batches, never from the length of a sampler of lists."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from workloads import Rows, Stream

from feedrate.trainables.loader.epoch_size import EpochSize, num_indices

HUNDRED = Rows(100)


class Lists(list):
    """A sampler of lists that knows their number."""


class Unknown:
    def __iter__(self):
        return iter([0, 1, 2])


class Counted(Stream):
    def __len__(self):
        return self.num_rows


@pytest.mark.parametrize(
    ("loader", "size"),
    [
        (DataLoader(HUNDRED, batch_size=8), EpochSize(num_samples=100)),
        (DataLoader(HUNDRED, batch_size=8, drop_last=True), EpochSize(num_samples=96)),
        (DataLoader(Rows(3), batch_size=8, drop_last=True), EpochSize(num_samples=3)),
        (DataLoader(HUNDRED, batch_size=8, sampler=[1, 2, 3]), EpochSize(num_samples=3)),
        (DataLoader(HUNDRED, batch_size=8, sampler=Unknown()), EpochSize(num_samples=100)),
        (DataLoader(HUNDRED, batch_size=None), EpochSize(num_batches=100)),
        (DataLoader(HUNDRED, batch_size=None, sampler=BatchSampler(RandomSampler(HUNDRED), 8, False)), EpochSize(num_samples=100)),
        (DataLoader(HUNDRED, batch_size=None, sampler=BatchSampler(RandomSampler(HUNDRED), 8, True)), EpochSize(num_samples=96)),
        (DataLoader(HUNDRED, batch_size=None, sampler=Lists([[1, 2], [3]])), EpochSize(num_batches=2)),
        (DataLoader(HUNDRED, batch_size=None, sampler=Unknown()), EpochSize(num_samples=100)),
        (DataLoader(HUNDRED, batch_sampler=Lists([[1, 2], [3]])), EpochSize(num_batches=2)),
        (DataLoader(HUNDRED, batch_sampler=BatchSampler(SequentialSampler(HUNDRED), 8, False)), EpochSize(num_samples=100)),
        (DataLoader(Stream(7), batch_size=2), EpochSize()),
        (DataLoader(Counted(7), batch_size=2), EpochSize(num_samples=7)),
        (DataLoader(Counted(7), batch_size=None), EpochSize(num_batches=7)),
        (DataLoader(Rows(0), batch_size=None, sampler=Lists()), EpochSize(num_batches=0)),
    ],
)
def test_an_epoch_is_what_its_parts_say(loader, size):
    """Samples where single indices are known; batches where the sampler or the dataset makes them; else nothing."""
    assert EpochSize.of_loader(loader) == size
    assert size.is_empty == (size.num_batches == 0)


@pytest.mark.parametrize(
    ("size", "items_per_batch", "samples_per_batch", "items"),
    [
        (EpochSize(num_samples=600), 8, 8, 600),
        (EpochSize(num_samples=600), 60, 64, 600),  # an incomplete last batch
        (EpochSize(num_samples=600), 8 / 3, 8, 200),  # samples that were left out
        (EpochSize(num_samples=600), 320, 8, 24_000),  # tokens
        (EpochSize(num_samples=600), 5, None, 600),
        (EpochSize(num_batches=6), 10.0, 1, 60),
        (EpochSize(), 10.0, 1, None),
    ],
)
def test_items_of_an_epoch_are_those_trained(size, items_per_batch, samples_per_batch, items):
    """As many for each sample as the windows showed."""
    assert size.num_items(items_per_batch, samples_per_batch) == items


@pytest.mark.parametrize(
    ("handed_out", "count"),
    [
        (7, 1), ("cat.jpg", 1), (None, 1), ([1, 2, 3], 3), ((1, 2), 2), (range(4), 4), ([None] * 8, 8),
        (torch.arange(5), 5), (torch.tensor(5), 1), (torch.arange(6).numpy(), 6), (slice(0, 10, 2), 5), (slice(None), 1),
    ],
)  # fmt: skip
def test_indices_are_counted_in_every_form(handed_out, count):
    """Lists, ranges, slices, arrays and tensors of indices; anything else is one index."""
    assert num_indices(handed_out) == count
