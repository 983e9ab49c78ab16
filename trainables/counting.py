"""Counts the batches that the loader has finished, so that ready but unconsumed ones are known (MEASURING.md 2.1)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, get_worker_info


class CountingCollate:
    """A collate_fn that counts: one slot a worker, one writer a slot, so no lock. Picklable for every start method."""

    def __init__(self, inner: Callable[[Any], Any], num_workers: int, start_method: str | None) -> None:
        self.inner = inner
        self._slots = multiprocessing.get_context(start_method).RawArray("q", num_workers)

    def __call__(self, samples: Any) -> Any:
        batch = self.inner(samples)
        worker = get_worker_info()
        if worker is not None:
            self._slots[worker.id] += 1
        return batch

    def produced(self) -> int:
        """Batches finished by all workers so far."""
        return sum(self._slots)


def count_batches(loader: DataLoader[Any]) -> CountingCollate | None:
    """Make `loader` count what its workers finish; None with 0 workers, where nothing is ever ready in advance."""
    if loader.num_workers == 0:
        return None
    context = loader.multiprocessing_context
    counter = CountingCollate(loader.collate_fn, loader.num_workers, context.get_start_method() if context else None)
    loader.collate_fn = counter
    return counter
