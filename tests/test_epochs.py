"""epochs.py: samplers that go on for as long as a measurement lasts, end when told, and remember."""

import itertools

import pytest
from torch.utils.data import BatchSampler, DataLoader
from workloads import Rows, Stream

from feedrate.trainables.epochs import EndlessSampler, WatchedSampler, watch

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork:DeprecationWarning")


def take(iterable, count):
    return list(itertools.islice(iterable, count))


def rows(batch):
    return batch[0][:, 0].int().tolist()


def test_every_epoch_is_a_permutation():
    """Shuffled indices run on without an end, each epoch of them a new permutation of the dataset."""
    drawn = take(EndlessSampler(10, shuffle=True, seed=3), 50)
    epochs = [drawn[start : start + 10] for start in range(0, 50, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_without_shuffling_the_order_is_kept_from_a_seeded_place():
    """In sequence the indices follow one another round and round; only where they begin depends on the seed."""
    starts = set()
    for seed in range(20):
        drawn = take(EndlessSampler(10, shuffle=False, seed=seed), 25)
        assert all((after - before) % 10 == 1 for before, after in itertools.pairwise(drawn))
        starts.add(drawn[0])
    assert len(starts) > 4


def test_the_seed_decides_and_a_new_beginning_goes_elsewhere():
    """Samplers of one seed are equal; one that is begun again does not read again what is cached already."""
    sampler = EndlessSampler(1000, shuffle=True, seed=3)
    first = take(sampler, 30)
    assert first == take(EndlessSampler(1000, shuffle=True, seed=3), 30)
    assert first != take(sampler, 30)
    assert len(sampler) == 1000


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_epochs_end_when_told(num_workers, persistent):
    """A watched loader goes on past its dataset's end; told to end it hands out what is in flight; then as long as asked."""
    persistent = persistent and num_workers > 0
    loader = DataLoader(Rows(6), batch_size=2, num_workers=num_workers, persistent_workers=persistent)
    sampler = watch(loader)
    seen = []
    for batch in loader:
        seen.append(rows(batch))
        if len(seen) == 20:
            sampler.end()
    in_flight = 4 if num_workers else 0
    assert 20 <= len(seen) <= 20 + in_flight
    assert seen == take(itertools.cycle([[0, 1], [2, 3], [4, 5]]), len(seen))
    sampler.num_batches = 7
    assert [len(list(loader)) for _ in range(2)] == [7, 7]


def test_a_batch_is_known_while_it_is_waited_for():
    """In order exactly one batch can be the next; in any order every one in flight; one value is a batch of one."""
    loader = DataLoader(Rows(100), batch_size=2, num_workers=2, prefetch_factor=3)
    sampler = watch(loader)
    batches = iter(loader)
    for number in range(10):
        assert sampler.waited_for(number, in_order=True) == [[2 * number, 2 * number + 1]]
        assert len(sampler.waited_for(number, in_order=False)) == 6
        assert rows(next(batches)) == [2 * number, 2 * number + 1]
    single = WatchedSampler([5, 6], endless=False, remembered=3)
    assert list(single) == [5, 6]
    assert single.waited_for(1, in_order=True) == [[6]]


@pytest.mark.parametrize(("num_workers", "sizes"), [(0, [4, 3]), (2, [4, 4, 3, 3])])
def test_an_iterable_dataset_ends_where_it_ends(num_workers, sizes):
    """Nobody knows a stream's length before: its epochs are its own, its indices are none."""
    loader = DataLoader(Stream(7), batch_size=4, num_workers=num_workers)
    sampler = watch(loader)
    assert [len(inputs) for inputs, _ in loader] == sizes
    assert sampler.waited_for(0, in_order=False) == []
    assert [len(inputs) for inputs, _ in loader] == sizes


def test_an_empty_sampler_does_not_go_on_for_ever():
    """Without a single batch there is an end at once."""
    assert list(WatchedSampler(BatchSampler([], 2, False), endless=True, remembered=1)) == []
