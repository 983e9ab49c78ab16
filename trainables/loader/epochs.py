"""Where a loader's epochs begin and end: samplers that go on for as long as a measurement lasts, and end on request."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from feedrate.trainables.loader.epoch_size import num_indices


class EndlessSampler(Sampler[int]):
    """A sampler that yields indices endlessly, epoch after epoch, from its own generator and from a seeded first index.

    The first index differs from trial to trial, and from one iteration to the next, so that a page cache that warms up
    does not favour settings that are measured later.
    """

    def __init__(self, num_samples: int, *, shuffle: bool, seed: int) -> None:
        self.num_samples = num_samples
        self.shuffle = shuffle
        self._seeds = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=self._seeds)))
        start = int(torch.randint(self.num_samples, (1,), generator=generator))
        while True:
            if self.shuffle:
                yield from torch.randperm(self.num_samples, generator=generator).tolist()
            else:
                yield from range(start, self.num_samples)
                start = 0

    def __len__(self) -> int:
        return self.num_samples


class WatchedSampler:
    """Replaces a loader's own (batch) sampler in torch's iterator: goes on forever, ends on request, remembers what it yielded.

    Only the iterator uses it (see loader_watch.py); the loader keeps its own sampler. Indices are drawn in the training
    process, even if workers load.

    Args:
        inner: the loader's own sampler.
        endless: whether to start `inner` again when it ends (not for an iterable dataset).
        remembered: number of batches to remember: at least as many as can be in flight.
    """

    def __init__(self, inner: Any, *, endless: bool, remembered: int) -> None:
        self.inner, self.endless = inner, endless
        self.num_batches: int | None = None
        """Length of the epochs that begin from now on; None: endless, or as long as the inner sampler."""
        self.total_batches = self.total_samples = 0
        """Number of batches and of samples yielded so far, in all epochs."""
        self._ending = False
        self._handed_out = 0
        self._recent: deque[tuple[int, Any]] = deque(maxlen=remembered)

    def __iter__(self) -> Iterator[Any]:
        return self.begin(iter(self.inner))

    def begin(self, indices: Iterator[Any]) -> Iterator[Any]:
        """Begin an epoch that reads these indices first; the inner sampler may already have yielded some of them."""
        self._ending, self._handed_out = False, 0
        self._recent.clear()
        return self._run(indices)

    def _run(self, indices: Iterator[Any]) -> Iterator[Any]:
        while True:
            at_first = self._handed_out
            for batch in indices:
                if self._ending or self._handed_out == self.num_batches:
                    return
                self._recent.append((self._handed_out, batch))
                self._handed_out += 1
                self.total_batches += 1
                self.total_samples += num_indices(batch)
                yield batch
            if not self.endless or self._handed_out == at_first:
                return
            indices = iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def end(self) -> None:
        """Let the epoch end with the batches that are already in flight."""
        self._ending = True

    def samples_per_batch(self) -> float | None:
        """Return the mean number of indices per batch so far; None before the first batch."""
        return self.total_samples / self.total_batches if self.total_batches else None

    def waited_for(self, number: int, in_order: bool) -> list[list[int]]:
        """Return the indices of the batch that comes next; if batches come in any order, those of all batches in flight.

        Args:
            number: number of batches that have come in this epoch.
            in_order: whether batches come in the sampler's order.
        """
        held = [batch for each, batch in self._recent if (each == number if in_order else each >= number)]
        lists = [list(batch) if isinstance(batch, (list, tuple)) else [batch] for batch in held]
        return [indices for indices in lists if None not in indices]  # an iterable dataset has no indices
