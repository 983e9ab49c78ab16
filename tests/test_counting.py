"""counting.py: the counter knows how many batches the workers have made, however they started."""

import pytest
from census import eventually
from torch.utils.data import DataLoader
from workloads import Rows, Stream

from feedrate.trainables.counting import count_batches

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_every_batch_made_is_counted(context):
    """Batches that workers made ahead of the trainer are counted, and epochs add up."""
    loader = DataLoader(Rows(32), batch_size=4, num_workers=2, prefetch_factor=2, multiprocessing_context=context)
    counter = count_batches(loader)
    assert counter.produced() == 0
    iterator = iter(loader)
    next(iterator)
    # 2 workers with 2 batches each in flight; the batch that was taken let one more begin
    assert eventually(lambda: counter.produced() == 5), counter.produced()
    assert len(list(iterator)) == 7
    assert counter.produced() == 8
    if context != "spawn":  # whose workers take seconds to start
        assert len(list(loader)) == 8
        assert counter.produced() == 16


def test_batches_stay_as_they_are():
    """Counting does not change what the loader's collate_fn returns."""
    plain, counted = (DataLoader(Rows(10), batch_size=4, num_workers=1) for _ in range(2))
    count_batches(counted)
    for one, other in zip(plain, counted, strict=True):
        assert one[0].equal(other[0])
        assert one[1].equal(other[1])


def test_nothing_is_counted_without_workers():
    """Without workers nothing is ready in advance, and the loader is left alone."""
    loader = DataLoader(Rows(), batch_size=4)
    collate = loader.collate_fn
    assert count_batches(loader) is None
    assert loader.collate_fn is collate


def test_batches_of_an_iterable_dataset_are_counted():
    """Also where each worker has a stream of its own."""
    loader = DataLoader(Stream(6), batch_size=4, num_workers=2)
    counter = count_batches(loader)
    assert len(list(loader)) == counter.produced() == 4


def test_items_without_batching_are_counted():
    """With batch_size=None torch converts each item by itself, which counts as a batch."""
    loader = DataLoader(Rows(6), batch_size=None, num_workers=1)
    counter = count_batches(loader)
    assert len(list(loader)) == counter.produced() == 6
