"""`LoaderWatch`: observes what a loader delivers and has ready, and can end its epochs, without changing the loader.

A loader's own attributes (sampler, batch_sampler, collate_fn) stay the user's objects: subclasses read them, call set_epoch on
them, compare and pickle them. So the watch observes torch's iterator instead. Every DataLoader calls the iterator's
constructor, even a subclass with an `__iter__` of its own; there the iterator, and nothing else, gets a `WatchedSampler`.
The number of ready batches is read from the iterator's queues.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from feedrate.trainables.loader.delivering_workers import DeliveringWorkers
from feedrate.trainables.loader.epochs import WatchedSampler
from feedrate.trainables.loader.load_probe import LoadProbe, probe_next

MAX_DEPTH = 3
"""How many levels deep to look for a loader in the attributes of other loaders."""
_torchs_init = _BaseDataLoaderIter.__init__
_watches: weakref.WeakSet[LoaderWatch] = weakref.WeakSet()
_collections: list[list[Started]] = []
"""One list for each active `collecting` context."""


@dataclass(frozen=True, slots=True)
class Started:
    """One of torch's iterators that was created inside a `collecting` context."""

    loader: weakref.ref[DataLoader[Any]]
    iterator: weakref.ref[Any]
    sampler: WatchedSampler


@contextlib.contextmanager
def collecting() -> Iterator[list[Started]]:
    """Collect the iterators that are created inside this context, because a loader may start its workers when it is made."""
    _install()
    started: list[Started] = []
    _collections.append(started)
    try:
        yield started
    finally:
        _collections[:] = [each for each in _collections if each is not started]


class LoaderWatch:
    """Watches a loader from its next iterator on, as long as this object lives.

    Args:
        loader: any DataLoader. If its `__iter__` is torch's own, its epochs are endless and end on request; otherwise the
            loader itself decides when an epoch ends.
        started: the iterators that were created while the loader was made.
    """

    def __init__(self, loader: DataLoader[Any], started: list[Started] | None = None) -> None:
        _install()
        self.loader = loader
        self.ends_when_told = type(loader).__iter__ is DataLoader.__iter__
        self.num_iterators = 0
        """Number of torch's iterators that this loader, or a loader that it holds, has created."""
        self.timeout_s = 0.0
        """How long an iterator waits for a batch if the loader itself sets no timeout; 0 waits forever."""
        self.sampler: WatchedSampler | None = None
        """The sampler that the latest iterator reads; None before there is an iterator that can be watched."""
        self.reads_num_workers: set[int] = set()
        """num_workers of the created iterators; not this loader's own number if it reads from another loader."""
        self.delivering = DeliveringWorkers()
        self.probe = LoadProbe()
        self._iterator: weakref.ref[Any] | None = None
        self._num_batches: int | None = None
        for each in started or ():
            if (own := each.loader()) is not None and self._is_mine(own):
                self.num_iterators += 1
                self.reads_num_workers.add(own.num_workers)
                self.sampler, self._iterator = each.sampler, each.iterator
        self.has_started = self.num_iterators > 0
        """Whether the loader had an iterator before it was watched. That iterator's workers keep the options with which they started."""
        _watches.add(self)

    def wait_at_most(self, timeout_s: float) -> None:
        """Let the current iterator and all later ones give up waiting for a batch after this many seconds."""
        self.timeout_s = timeout_s
        if (iterator := self._current()) is not None:
            _limit(iterator, timeout_s)

    def set_epoch_batches(self, num_batches: int) -> None:
        """Give later epochs this many batches, and end the current epoch with the batches in flight."""
        assert self.ends_when_told
        self._num_batches = num_batches
        if self.sampler is not None:
            self.sampler.num_batches = num_batches
            self.sampler.end()

    def ready(self) -> int:
        """Return the number of batches that workers have finished and nobody has taken; 0 if that cannot be seen."""
        return num_ready(self._current())

    def num_taken(self) -> int | None:
        """Return the number of batches that were taken from torch's iterators so far; None if not known."""
        if self.sampler is None:
            return None
        return self.sampler.total_batches - len(getattr(self._current(), "_task_info", ()))

    def took(self) -> None:
        """Notice which workers deliver; call it after each batch that was taken."""
        self.delivering.took(self._current())

    def samples_per_batch(self) -> float | None:
        """Return the mean number of indices per batch so far; None if not known."""
        return self.sampler.samples_per_batch() if self.sampler is not None else None

    def waited_for(self, in_order: bool) -> list[list[int]]:
        """Return the indices of the batch that comes next; if batches come in any order, those of all batches in flight."""
        if self.sampler is None:
            return []
        return self.sampler.waited_for(getattr(self._current(), "_num_yielded", 0), in_order)

    def _current(self) -> Any:
        return self._iterator() if self._iterator is not None else None

    def _is_mine(self, loader: DataLoader[Any]) -> bool:
        return any(loader is each for each in [self.loader, *loaders_in(self.loader)])

    def _begun(self, iterator: Any, loader: DataLoader[Any]) -> None:
        """Watch the sampler of a new iterator if it belongs to this loader."""
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


def num_ready(iterator: Any) -> int:
    """Return the number of batches that the workers of one of torch's iterators have finished and nobody has taken; 0 if that cannot be seen."""
    queue = getattr(iterator, "_worker_result_queue", None)
    if queue is None:
        return 0
    with contextlib.suppress(AttributeError, NotImplementedError, OSError, ValueError):  # another torch version, or the queue is closed
        early = sum(len(each) == 2 for each in list(iterator._task_info.values()))  # batches that arrived before their turn
        pinned = iterator._data_queue.qsize() if iterator._data_queue is not queue else 0
        return int(queue.qsize()) + pinned + early
    return 0


def loaders_in(value: object, depth: int = MAX_DEPTH) -> list[DataLoader[Any]]:
    """Return the DataLoaders that an object holds as attributes, and the DataLoaders that those hold."""
    found: list[DataLoader[Any]] = []
    for held in list(getattr(value, "__dict__", {}).values()) if depth else ():
        if issubclass(type(held), DataLoader):  # isinstance would make lazy proxy objects load their target
            found += [held, *loaders_in(held, depth - 1)]
    return found


def _install() -> None:
    """Replace the constructor of torch's iterators; the new one does nothing more if no loader is watched."""
    _BaseDataLoaderIter.__init__ = _init  # type: ignore[method-assign]


def _init(self: Any, loader: DataLoader[Any]) -> None:
    probe_next(next((watch.probe for watch in _watches if watch._is_mine(loader)), None))
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
    """Let a new iterator read a watched sampler, which continues with the indices that the iterator's own sampler has begun."""
    iterator._index_sampler = sampler  # which an iterator with workers starts again when it resets
    iterator._sampler_iter = sampler.begin(iterator._sampler_iter)
    return sampler


def _limit(iterator: Any, timeout_s: float) -> None:
    if timeout_s and getattr(iterator, "_num_workers", 0) and not iterator._timeout:
        iterator._timeout = timeout_s
