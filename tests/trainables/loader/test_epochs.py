"""epochs.py: samplers that go on for as long as a measurement lasts, end when asked to, and remember their latest batches."""

import itertools

import pytest
from torch.utils.data import BatchSampler

from feedrate.trainables.loader.epochs import EndlessSampler, WatchedSampler


def take(iterable, count):
    return list(itertools.islice(iterable, count))


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


def test_a_batch_is_remembered():
    """By its number in the epoch; one value is a batch of one."""
    single = WatchedSampler([5, 6], endless=False, remembered=3)
    assert list(single) == [5, 6]
    assert single.waited_for(1, in_order=True) == [[6]]
    assert single.samples_per_batch() == 1


def test_an_empty_sampler_does_not_go_on_for_ever():
    """Without a single batch there is an end at once."""
    assert list(WatchedSampler(BatchSampler([], 2, False), endless=True, remembered=1)) == []


def test_a_watched_sampler_has_the_attributes_of_the_users():
    """What torch's iterators ask their sampler for is the user's answer."""
    own = BatchSampler([5, 3, 9], 2, False)
    watched = WatchedSampler(own, endless=True, remembered=1)
    assert (watched.batch_size, watched.sampler, len(watched)) == (2, [5, 3, 9], 2)
    with pytest.raises(AttributeError, match="'BatchSampler' object has no attribute 'epoch'"):
        watched.epoch  # noqa: B018
