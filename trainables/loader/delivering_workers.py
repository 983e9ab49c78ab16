"""`DeliveringWorkers`: how many of a loader's workers deliver anything at all."""

from __future__ import annotations

import weakref
from typing import Any

from torch.utils.data import IterableDataset


class DeliveringWorkers:
    """Counts the workers that deliver at least one batch in an epoch, in the epoch with the most of them.

    The first tasks of an epoch go to one worker each, and batches come in the order of the tasks. So as many workers have data as
    batches come of the first `num_workers` tasks. A worker that delivers one batch and then has no more counts, one without any does not.
    """

    def __init__(self) -> None:
        self.num: int | None = None
        """None as long as it is not known."""
        self._iterator: weakref.ref[Any] | None = None
        self._num_yielded = 0
        self._is_open = False
        """Whether the first tasks of the present epoch are not all done."""

    def took(self, iterator: Any) -> None:
        """Look at one of torch's iterators after each batch that was taken."""
        num_workers, num_yielded = getattr(iterator, "_num_workers", 0), getattr(iterator, "_num_yielded", 0)
        next_task = getattr(iterator, "_rcvd_idx", None)
        if not num_workers or next_task is None or not getattr(iterator, "_in_order", True):
            return
        if self._iterator is None or self._iterator() is not iterator or num_yielded <= self._num_yielded:
            if self._is_open:  # the epoch before had fewer batches than workers
                self._found(self._num_yielded)
            self._iterator, self._num_yielded, self._is_open = weakref.ref(iterator), 0, True
        if num_yielded - self._num_yielded > 1:  # the loader's own __iter__ takes several, so it is not known of which tasks they come
            self._is_open = False
        elif self._is_open and next_task >= num_workers:
            self._found(num_yielded if next_task == num_workers else num_yielded - 1)
            self._is_open = False
        self._num_yielded = num_yielded

    def _found(self, num: int) -> None:
        self.num = max(self.num or 0, num)


def num_shards(dataset: object) -> int | None:
    """Return in how many parts a stream says that it can be divided among workers, as those of Hugging Face do; None if it does not say so."""
    if not isinstance(dataset, IterableDataset):
        return None
    for name in ("num_shards", "n_shards"):
        found = getattr(dataset, name, None)
        if isinstance(found, int) and not isinstance(found, bool):
            return found
    return None
