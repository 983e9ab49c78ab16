"""loader_watch.py: counts delivered and ready batches, and changes no attribute of the user's loader."""

import itertools
import multiprocessing
import pickle

import pytest
from census import OURS, eventually
from torch.utils.data import BatchSampler, DataLoader, Sampler, SequentialSampler
from workloads import Reusing, Rows, Stream

from feedrate.trainables.failure import user_traceback
from feedrate.trainables.loader.loader_watch import LoaderWatch, collecting

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork:DeprecationWarning")


def take(iterable, count):
    return list(itertools.islice(iterable, count))


def rows(batch):
    return batch[0][:, 0].int().tolist()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_what_is_ready_is_counted(context):
    """Batches that workers made ahead of the trainer, however the workers started, and from epoch to epoch."""
    loader = DataLoader(Rows(32), batch_size=4, num_workers=2, prefetch_factor=2, multiprocessing_context=context)
    watch = LoaderWatch(loader)
    assert watch.ready() == 0
    iterator = iter(loader)
    next(iterator)
    # 2 workers with 2 batches each in flight; the batch that was taken let one more begin
    assert eventually(lambda: watch.ready() == 4), watch.ready()
    take(iterator, 3)
    assert eventually(lambda: watch.ready() == 4), watch.ready()


def test_batches_that_came_before_their_turn_are_ready():
    """A batch that waits for an earlier one of another worker is finished."""

    class SlowFirst(Rows):
        def __getitem__(self, index):
            if index < 4:
                assert eventually(self.others.is_set, 10)
            if index >= 16:
                self.others.set()
            return super().__getitem__(index)

    dataset = SlowFirst(32)
    dataset.others = multiprocessing.Event()
    loader = DataLoader(dataset, batch_size=4, num_workers=2, prefetch_factor=3, sampler=[*range(4), *range(8, 32), *range(4, 8)])
    watch = LoaderWatch(loader)
    iterator = iter(loader)
    next(iterator)
    assert eventually(lambda: watch.ready() == 6), watch.ready()


def test_nothing_is_ready_without_workers():
    """Batches of the training process are made when they are asked for; so are those of a loader that has not begun."""
    loader = DataLoader(Rows(), batch_size=4)
    watch = LoaderWatch(loader)
    next(iter(loader))
    assert watch.ready() == 0


class Own(Sampler):
    """A sampler with a state of its own."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        return iter([5, 3, 9, 7])

    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_loader_stays_the_users(num_workers):
    """Every attribute is the object that the user gave, during an epoch too; a missing length stays missing."""
    own, collate = Own(), list
    loader = DataLoader(Rows(), batch_size=2, sampler=own, collate_fn=collate, num_workers=num_workers)
    before = dict(vars(loader))
    watch = LoaderWatch(loader)
    iterator = iter(loader)
    next(iterator)
    assert vars(loader) == before
    assert type(loader.batch_sampler) is BatchSampler
    assert loader.sampler is own
    assert loader.collate_fn is collate
    loader.sampler.set_epoch(3)
    assert own.epoch == 3
    with pytest.raises(TypeError, match="'Own' has no len"):
        len(loader)
    assert type(pickle.loads(pickle.dumps(loader)).batch_sampler) is BatchSampler
    assert watch.sampler.inner is loader.batch_sampler


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_epochs_end_when_told(num_workers, persistent):
    """A watched loader goes on past its dataset's end. Asked to end, it delivers the batches in flight; later epochs have the length that was asked for."""
    persistent = persistent and num_workers > 0
    loader = DataLoader(Rows(6), batch_size=2, num_workers=num_workers, persistent_workers=persistent)
    watch = LoaderWatch(loader)
    seen = []
    for batch in loader:
        seen.append(rows(batch))
        if len(seen) == 20:
            watch.set_epoch_batches(7)
    in_flight = 4 if num_workers else 0
    assert 20 <= len(seen) <= 20 + in_flight
    assert seen == take(itertools.cycle([[0, 1], [2, 3], [4, 5]]), len(seen))
    assert [len(list(loader)) for _ in range(2)] == [7, 7]


def test_a_watch_that_is_gone_watches_no_more():
    """The loader's epochs are its own again."""
    loader = DataLoader(Rows(6), batch_size=2)
    watch = LoaderWatch(loader)
    assert len(take(loader, 9)) == 9
    del watch
    assert len(list(loader)) == 3


def test_the_sampler_is_begun_as_often_as_by_torch():
    """A sampler that counts its epochs counts the same ones."""

    class Counts(Own):
        def __iter__(self):
            self.epoch += 1
            return super().__iter__()

    for num_workers in (0, 1):
        plain, watched = Counts(), Counts()
        list(DataLoader(Rows(), sampler=plain, num_workers=num_workers))
        loader = DataLoader(Rows(), sampler=watched, num_workers=num_workers)
        watch = LoaderWatch(loader)
        batches = iter(loader)
        take(batches, 1 if num_workers == 0 else 0)
        assert watched.epoch == plain.epoch
        del watch


def test_a_batch_is_known_while_it_is_waited_for():
    """In order exactly one batch can be the next; in any order every one in flight."""
    loader = DataLoader(Rows(100), batch_size=2, num_workers=2, prefetch_factor=3)
    watch = LoaderWatch(loader)
    batches = iter(loader)
    for number in range(10):
        assert watch.waited_for(in_order=True) == [[2 * number, 2 * number + 1]]
        assert len(watch.waited_for(in_order=False)) == 6
        assert rows(next(batches)) == [2 * number, 2 * number + 1]
    assert watch.samples_per_batch() == 2


@pytest.mark.parametrize(("num_workers", "sizes"), [(0, [4, 3]), (2, [4, 4, 3, 3])])
def test_an_iterable_dataset_ends_where_it_ends(num_workers, sizes):
    """Nobody knows a stream's length before: its epochs are its own, its indices are none."""
    loader = DataLoader(Stream(7), batch_size=4, num_workers=num_workers)
    watch = LoaderWatch(loader)
    assert [len(inputs) for inputs, _ in loader] == sizes
    assert watch.waited_for(in_order=False) == []
    assert [len(inputs) for inputs, _ in loader] == sizes


def test_a_loader_that_has_started_is_seen_too():
    """What its workers made while it was made counts, and its own counting ends its epochs."""
    with collecting() as begun:
        loader = Reusing(Rows(8), batch_size=2, num_workers=2)
    watch = LoaderWatch(loader, begun)
    assert watch.has_started
    assert not watch.ends_when_told
    assert eventually(lambda: watch.ready() == 4), watch.ready()
    for _ in range(3):
        assert list(map(rows, loader)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert watch.waited_for(in_order=True) == [[0, 1]]
    assert watch.num_iterators == 1


def test_a_loader_inside_another_one_is_seen():
    """A subclass that reads the loader it holds: what that one has ready is what is ready."""

    class Around(DataLoader):
        def __init__(self, inner):
            self.inner = inner
            super().__init__(inner.dataset, batch_size=inner.batch_size, num_workers=inner.num_workers)

        def __iter__(self):
            yield from self.inner

    loader = Around(DataLoader(Rows(8), batch_size=2, num_workers=1))
    watch = LoaderWatch(loader)
    batches = iter(loader)
    next(batches)
    assert eventually(lambda: watch.ready() == 2), watch.ready()
    assert len(list(batches)) == 3  # its own end, not one of ours


def test_a_samplers_exception_shows_no_frame_of_ours():
    """The user's traceback goes from torch into the user's sampler."""

    class Broken(SequentialSampler):
        def __iter__(self):
            yield 0
            raise KeyError("no such split")

    loader = DataLoader(Rows(), sampler=Broken(Rows()))
    watch = LoaderWatch(loader)
    with pytest.raises(KeyError, match="no such split") as raised:
        list(loader)
    shown = user_traceback(raised.value)
    assert "Broken" in shown or "no such split" in shown
    assert OURS not in shown
    assert watch.ready() == 0
