"""`Pool`: the workers of one setting, which load one segment of an epoch after another and wait in between.

A pool is a copy of the user's loader with its own number of workers, whose sampler is a `Segment`. It is an ordinary DataLoader with
persistent workers: when a segment ends, the batches in flight are still delivered, and the next segment is its next epoch.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from feedrate.trainables.loader.loader_watch import num_ready
from feedrate.trainables.tuning.index_stream import IndexStream, Segment
from feedrate.trainables.tuning.torchs import torchs_iterator

_guarded: weakref.WeakSet[Pool] = weakref.WeakSet()


class WorkerDiedError(RuntimeError):
    """A worker of a pool has died while the training did something else."""


class Pool:
    """The workers of one setting.

    Args:
        loader: the user's loader.
        num_workers: the setting.
        may_die: method that returns whether the death of a worker is survived now. Otherwise torch raises its error wherever the training is.
    """

    def __init__(self, loader: DataLoader[Any], num_workers: int, *, may_die: Callable[[], bool]) -> None:
        self.num_workers = num_workers
        # a reference would form a circle, and workers that only the garbage collector ends take 5 seconds each
        self._may_die = weakref.WeakMethod(may_die)
        self._is_own = num_workers == loader.num_workers
        self._loader = _copy(loader, num_workers)
        self._iterator: Any = None
        self._segment: Segment | None = None
        self._is_taking = False
        self._has_died = self._is_closing = False

    def start(self, stream: IndexStream, generator: torch.Generator | None) -> None:
        """Begin to load the next batches of an epoch, and go on until `end`.

        Args:
            stream: the epoch's indices.
            generator: where torch draws the seed of new workers; None is the global generator.
        """
        self._segment = Segment(stream)
        fields = vars(self._loader)
        fields["batch_sampler" if fields["batch_sampler"] is not None else "sampler"] = self._segment
        if self.num_workers and self._iterator is not None:
            self._iterator._index_sampler = self._segment  # it keeps the sampler of its first epoch
        self._iterate(generator)

    def start_stream(self, generator: torch.Generator | None, *, seeded_apart: bool) -> None:
        """Begin an epoch of an iterable dataset.

        Args:
            generator: the loader's own, from which torch draws a seed.
            seeded_apart: draw that seed elsewhere, because this epoch's is drawn already.
        """
        vars(self._loader)["persistent_workers"] = False  # each epoch begins with what the dataset is then
        self._iterate(torch.Generator().manual_seed(0) if seeded_apart else generator)

    def _iterate(self, generator: torch.Generator | None) -> None:
        vars(self._loader)["generator"] = generator
        if self._is_own:
            self._iterator = torchs_iterator(self._loader)
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="This DataLoader will create")  # torch's advice for a number that the user chose
                self._iterator = torchs_iterator(self._loader)
        if self.num_workers:
            _guard(self)

    def end(self) -> None:
        """Take no further indices; what is in flight is still delivered."""
        if self._segment is not None:
            self._segment.has_ended = True

    def take(self) -> Any:
        """Return the next batch.

        Raises:
            StopIteration: the segment, or the epoch, has no more.
            WorkerDiedError: a worker has died.
            Exception: whatever loading the batch raised. The batch counts as delivered by the user's own setting only.
        """
        segment = self._segment
        if not self.num_workers:
            try:
                batch = next(self._iterator)
            except KeyboardInterrupt:  # torch loses the batch, too, if somebody goes on after it
                self.pass_over()
                raise
        elif self._has_died:
            raise WorkerDiedError("a loader worker died")
        else:
            self._is_taking = True
            try:
                batch = next(self._iterator)
            finally:
                self._is_taking = False
        if segment is not None:
            segment.pending.popleft()
        return batch

    def pass_by(self, indices: Iterator[Any] | None) -> Callable[[], Any] | None:
        """Let torch draw from the sampler itself, which is possible as long as nothing is in flight.

        Args:
            indices: the sampler's iterator; None lets torch draw through this pool again.

        Returns:
            What delivers the next batch instead of `take`; None if there are workers, or this version of torch keeps its iterator elsewhere.
        """
        if self.num_workers or not hasattr(self._iterator, "_sampler_iter"):
            return None
        self._iterator._sampler_iter = self._segment if indices is None else indices
        return self._iterator.__next__  # type: ignore[no-any-return]

    def is_drained(self) -> bool:
        """Return whether all batches that this pool took are delivered. If not, the dataset itself raised StopIteration."""
        return self._segment is None or not self._segment.pending

    def pass_over(self) -> None:
        """Count the next batch as delivered, because loading it failed."""
        if self._segment is not None and self._segment.pending:
            self._segment.pending.popleft()

    def give_up(self) -> list[Any]:
        """End the workers, and return the indices of what was in flight, in order."""
        pending = list(self._segment.pending) if self._segment is not None else []
        self.close()
        return pending

    def close(self) -> None:
        """End the workers. That others of them die meanwhile is not an error."""
        self._is_closing = True
        iterator = self._iterator
        if iterator is not None and self.num_workers:
            with contextlib.suppress(Exception):  # a worker that is dead already, or another torch version
                if iterator._worker_pids_set:  # otherwise SIGCHLD of a worker that has died would still raise torch's error, anywhere
                    iterator._worker_pids_set = False
                    signal_handling._remove_worker_pids(id(iterator))  # type: ignore[attr-defined]
            with contextlib.suppress(Exception):
                iterator._shutdown_workers()
        _guarded.discard(self)
        self._iterator = self._segment = None
        vars(self._loader)["_iterator"] = None

    def num_ready(self) -> int:
        """Return how many batches are finished and not yet taken."""
        return num_ready(self._iterator)

    def base_seed(self) -> int:
        """Return the seed from which the workers' seeds are derived."""
        return int(getattr(self._iterator, "_base_seed", 0))

    def pids(self) -> list[int]:
        """Return the processes of the workers."""
        return [each.pid for each in getattr(self._iterator, "_workers", ())]

    def has_dead_worker(self) -> bool:
        """Return whether a worker has ended by itself."""
        return any(each.exitcode is not None for each in getattr(self._iterator, "_workers", ()))

    def died(self) -> bool:
        """Note that a worker has died; return whether the error is to be raised at once, because the training waits for a batch."""
        self._has_died = True
        return self._is_taking

    def survives(self) -> bool:
        """Return whether the death of a worker is survived now."""
        may_die = self._may_die()
        return self._is_closing or (may_die is not None and may_die())


def _copy(loader: DataLoader[Any], num_workers: int) -> DataLoader[Any]:
    """Return the same loader with another number of workers. Torch forbids some of these changes in place, not in a copy."""
    copied: DataLoader[Any] = object.__new__(type(loader))
    fields = vars(copied)
    fields |= vars(loader)
    fields |= {"num_workers": num_workers, "persistent_workers": num_workers > 0, "_iterator": None}
    fields["prefetch_factor"] = (loader.prefetch_factor or 2) if num_workers else None
    if not num_workers:
        fields["timeout"] = 0
    elif not loader.num_workers:
        # the script was written without workers, so it may not have the main guard that other start methods need
        fields["_DataLoader__multiprocessing_context"] = torch.multiprocessing.get_context("fork")
    return copied


def _guard(pool: Pool) -> None:
    """Let the death of a worker be noticed without an error in the middle of a training step."""
    _guarded.add(pool)
    if threading.current_thread() is not threading.main_thread():
        return  # torch notices it in the next batch then
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and not isinstance(handler, _OnDeath):
        signal.signal(signal.SIGCHLD, _OnDeath(handler))


class _OnDeath:
    """The handler of SIGCHLD around torch's, which raises RuntimeError wherever the main thread is."""

    def __init__(self, torchs: Callable[..., Any]) -> None:
        self._torchs = torchs

    def __call__(self, number: int, frame: Any) -> None:
        try:
            self._torchs(number, frame)
        except RuntimeError:
            dead = [each for each in list(_guarded) if each.has_dead_worker() and each.survives()]
            is_waited_for = [each.died() for each in dead]
            if not dead or any(is_waited_for):
                raise
