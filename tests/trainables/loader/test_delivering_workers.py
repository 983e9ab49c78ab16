"""delivering_workers.py: how many workers deliver anything, with torch's real iterators."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

from feedrate.trainables.loader.delivering_workers import num_shards
from feedrate.trainables.loader.loader_watch import LoaderWatch

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork:DeprecationWarning")


class Shards(IterableDataset):
    """Shards of some samples each; worker k of W reads the shards k, k+W, ..."""

    def __init__(self, *sizes):
        self.sizes = sizes

    @property
    def num_shards(self):
        return len(self.sizes)

    def __iter__(self):
        info = get_worker_info()
        for size in self.sizes[info.id :: info.num_workers]:
            yield from torch.zeros(size, 2)


def delivering(loader, epochs=2):
    watch = LoaderWatch(loader)
    watch.ends_when_told = False  # the user's own epochs
    for _ in range(epochs):
        for _ in loader:
            watch.took()
    iter(loader)
    watch.took()  # now it is known how the last epoch ended
    return watch.delivering.num


@pytest.mark.parametrize(
    ("sizes", "num_workers", "working"),
    [((40,), 4, 1), ((20, 20), 4, 2), ((20, 20, 20, 20, 20), 4, 4), ((1, 1, 1), 3, 3), ((40, 0, 1), 3, 2)],
    ids=["one shard", "two", "more than workers", "of one batch", "an empty one"],
)
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_that_deliver_are_counted(sizes, num_workers, working, persistent):
    """A worker that is done earlier than the others has delivered something all the same."""
    assert delivering(DataLoader(Shards(*sizes), batch_size=1, num_workers=num_workers, persistent_workers=persistent)) == working


def test_an_epoch_with_fewer_batches_than_workers():
    assert delivering(DataLoader(TensorDataset(torch.zeros(3, 2)), batch_size=1, num_workers=4)) == 3


def test_nothing_is_known_without_workers_or_without_an_order():
    assert delivering(DataLoader(TensorDataset(torch.zeros(3, 2)), batch_size=1)) is None
    assert delivering(DataLoader(TensorDataset(torch.zeros(9, 2)), batch_size=1, num_workers=2, in_order=False)) is None


def test_what_a_stream_says_of_its_shards():
    assert num_shards(Shards(1, 2, 3)) == 3
    assert num_shards(TensorDataset(torch.zeros(3))) is None
