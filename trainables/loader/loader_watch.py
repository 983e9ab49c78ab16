"""`LoaderWatch`: sees what a loader hands out and what it has ready, and lets its epochs end, without a change to the loader.

A loader's own attributes (sampler, batch_sampler, collate_fn) stay the user's objects: subclasses read them, call set_epoch on
them, compare and pickle them. What is watched is torch's iterator. Its constructor is the one place that every DataLoader
passes, a subclass with an `__iter__` of its own too: there the iterator, and it alone, gets a `WatchedSampler`. How many batches
are ready is read from its queues.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from feedrate.trainables.loader.epochs import WatchedSampler

MAX_DEPTH = 3
"""How deep a loader may be wrapped in others that hold it as an attribute."""
_torchs_init = _BaseDataLoaderIter.__init__
_watches: weakref.WeakSet[LoaderWatch] = weakref.WeakSet()
_collections: list[list[Started]] = []
"""One list for each `collecting` under way."""


@dataclass(frozen=True, slots=True)
class Started:
    """An iterator of torch's that began while `collecting`."""

    loader: weakref.ref[DataLoader[Any]]
    iterator: weakref.ref[Any]
    sampler: WatchedSampler


@contextlib.contextmanager
def collecting() -> Iterator[list[Started]]:
    """Collect the iterators that begin meanwhile: a loader may start its workers when it is made."""
    _install()
    started: list[Started] = []
    _collections.append(started)
    try:
        yield started
    finally:
        _collections[:] = [each for each in _collections if each is not started]


class LoaderWatch:
    """A loader, watched from its next iterator on, as long as this object lives.

    Args:
        loader: any DataLoader. One whose `__iter__` is torch's own goes on without an end and ends its epochs when told; any
            other one decides for itself when an epoch ends.
        started: the iterators that began while it was made.
    """

    def __init__(self, loader: DataLoader[Any], started: list[Started] | None = None) -> None:
        _install()
        self.loader = loader
        self.ends_when_told = type(loader).__iter__ is DataLoader.__iter__
        self.num_iterators = 0
        """Iterators of torch's that this loader, or one that it holds, has begun."""
        self.timeout_s = 0.0
        """How long an iterator waits for a batch, where the loader itself names no time; 0 is without an end."""
        self.sampler: WatchedSampler | None = None
        """What the latest iterator reads; None before there is one that can be watched."""
        self.reads_num_workers: set[int] = set()
        """Workers of the iterators that began; not this loader's own number where it reads another loader."""
        self._iterator: weakref.ref[Any] | None = None
        self._num_batches: int | None = None
        for each in started or ():
            if (own := each.loader()) is not None and self._is_mine(own):
                self.num_iterators += 1
                self.reads_num_workers.add(own.num_workers)
                self.sampler, self._iterator = each.sampler, each.iterator
        self.has_started = self.num_iterators > 0
        """Whether an iterator began before this watch: what is asked of workers from now on does not reach it."""
        _watches.add(self)

    def wait_at_most(self, timeout_s: float) -> None:
        """Let every iterator, of now and of later, give up a batch after this many seconds."""
        self.timeout_s = timeout_s
        if (iterator := self._current()) is not None:
            _limit(iterator, timeout_s)

    def set_epoch_batches(self, num_batches: int) -> None:
        """Let the epochs that begin from now on have this many batches, and this one end with what is in flight."""
        assert self.ends_when_told
        self._num_batches = num_batches
        if self.sampler is not None:
            self.sampler.num_batches = num_batches
            self.sampler.end()

    def ready(self) -> int:
        """Batches that workers have finished and nobody has taken; 0 where that cannot be seen."""
        iterator = self._current()
        queue = getattr(iterator, "_worker_result_queue", None)
        if queue is None:
            return 0
        with contextlib.suppress(AttributeError, NotImplementedError, OSError, ValueError):  # another torch, or it is over
            early = sum(len(each) == 2 for each in list(iterator._task_info.values()))  # they came before their turn
            pinned = iterator._data_queue.qsize() if iterator._data_queue is not queue else 0
            return int(queue.qsize()) + pinned + early
        return 0

    def num_taken(self) -> int | None:
        """Batches that were taken out of torch's iterators so far; None where that is not known."""
        if self.sampler is None:
            return None
        return self.sampler.total_batches - len(getattr(self._current(), "_task_info", ()))

    def samples_per_batch(self) -> float | None:
        """Indices of a batch, on average over those handed out; None where they are not known."""
        return self.sampler.samples_per_batch() if self.sampler is not None else None

    def waited_for(self, in_order: bool) -> list[list[int]]:
        """Indices of the batch that is being waited for; of all that may be, where they come in any order."""
        if self.sampler is None:
            return []
        return self.sampler.waited_for(getattr(self._current(), "_num_yielded", 0), in_order)

    def _current(self) -> Any:
        return self._iterator() if self._iterator is not None else None

    def _is_mine(self, loader: DataLoader[Any]) -> bool:
        return any(loader is each for each in [self.loader, *loaders_in(self.loader)])

    def _begun(self, iterator: Any, loader: DataLoader[Any]) -> None:
        """One of this loader's iterators begins: watch what it reads."""
        if not self._is_mine(loader):
            return
        self.num_iterators += 1
        self.reads_num_workers.add(loader.num_workers)
        self._iterator = weakref.ref(iterator)
        endless = self.ends_when_told and not isinstance(loader.dataset, IterableDataset)
        if self.sampler is not None and self.sampler.inner is iterator._index_sampler:
            _read(iterator, self.sampler)
        else:
            self.sampler = _read(iterator, _watched(iterator, loader, endless=endless))
        self.sampler.num_batches = self._num_batches
        _limit(iterator, self.timeout_s)


def loaders_in(value: object, depth: int = MAX_DEPTH) -> list[DataLoader[Any]]:
    """The DataLoaders that an object holds as attributes, and that those hold."""
    found: list[DataLoader[Any]] = []
    for held in list(getattr(value, "__dict__", {}).values()) if depth else ():
        if issubclass(type(held), DataLoader):  # isinstance would ask lazy stand-ins for their class
            found += [held, *loaders_in(held, depth - 1)]
    return found


def _install() -> None:
    """Watch the constructor of torch's iterators from now on; it does nothing more where no loader is watched."""
    _BaseDataLoaderIter.__init__ = _init  # type: ignore[method-assign]


def _init(self: Any, loader: DataLoader[Any]) -> None:
    _torchs_init(self, loader)
    for watch in list(_watches):
        watch._begun(self, loader)
    if _collections:
        sampler = _read(self, _watched(self, loader, endless=False))
        started = Started(weakref.ref(loader), weakref.ref(self), sampler)
        for collection in _collections:
            collection.append(started)


def _watched(iterator: Any, loader: DataLoader[Any], *, endless: bool) -> WatchedSampler:
    remembered = max(loader.num_workers * (loader.prefetch_factor or 1), 1) + 2 * loader.num_workers
    return WatchedSampler(iterator._index_sampler, endless=endless, remembered=remembered)


def _read(iterator: Any, sampler: WatchedSampler) -> WatchedSampler:
    """Let an iterator that has only begun read a watched sampler, from what its own one has begun to hand out."""
    iterator._index_sampler = sampler  # which the workers' iterator begins anew
    iterator._sampler_iter = sampler.begin(iterator._sampler_iter)
    return sampler


def _limit(iterator: Any, timeout_s: float) -> None:
    if timeout_s and getattr(iterator, "_num_workers", 0) and not iterator._timeout:
        iterator._timeout = timeout_s
