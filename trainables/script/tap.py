"""`Tap`: what a script gets when it iterates a DataLoader: an iterator that asks `MeasuredScript` for every batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from feedrate.trainables.script.seen_loader import SeenLoader


class Tap:
    """One iteration of a loader by the script.

    Args:
        next_batch: decides which batch the script gets.
        seen: the entry of the loader.
        loader: the script's loader.
        own_iter: the `__iter__` of its class.
    """

    def __init__(self, next_batch: Callable[[Tap], Any], seen: SeenLoader, loader: Any, own_iter: Callable[[Any], Any]) -> None:
        self._next_batch, self.seen, self.loader = next_batch, seen, loader
        self._own_iter = own_iter
        self._real: Any = None
        self._stays_out = False
        """Whether the first batch is read with one worker, even if the loader asks for more."""
        self.is_over = False
        """Whether the loader's own iteration has ended."""
        self.num_batches = 0
        self.num_steps_before = 0
        """Number of optimizer steps when the latest batch was handed out."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._next_batch(self)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__dict__.get("_real") is None:
            raise AttributeError(name)
        return getattr(self._real, name)

    def open(self, *, apart: bool = False) -> None:
        """Start the iteration that the loader itself would do without feedrate.

        Args:
            apart: read the first batch with one worker, even if the loader has none. The dataset then stays unused in this
                process, whose later workers would inherit what the dataset opens on first use.
        """
        if self._real is None:
            self._stays_out = apart
            with self._one_worker():
                self._real = self._own_iter(self.loader)

    def take(self) -> Any:
        """Return the next batch that the loader itself would give.

        Raises:
            StopIteration: the epoch is over.
        """
        self.open()
        if not self._stays_out or self.num_batches:
            return next(self._real)
        try:
            with self._one_worker():
                return next(self._real)
        except StopIteration:
            raise
        except Exception:  # it may work without workers only; then the script's own way decides
            self._stays_out = False
            self._real = self._own_iter(self.loader)
            return next(self._real)

    def close(self) -> None:
        """End the loader's own iteration and its workers.

        A loader that can save its state (torchdata's) would start its workers again to answer. From now on it has the present one.
        """
        real, self._real = self._real, None
        if real is not None and hasattr(self.loader, "state_dict"):
            with contextlib.suppress(Exception):
                state = self.loader.state_dict()
                self.loader.state_dict = lambda: dict(state)
        with contextlib.suppress(Exception):
            if getattr(self.loader, "_iterator", None) is not None:
                self.loader._iterator._shutdown_workers()
                self.loader._iterator = None
            getattr(real, "_shutdown_workers", getattr(real, "close", lambda: None))()

    @contextlib.contextmanager
    def _one_worker(self) -> Iterator[None]:
        """Give the loader one worker meanwhile, if its first batch is to be read apart."""
        loader = self.loader
        if not self._stays_out:
            yield
            return
        before = loader.num_workers, loader.prefetch_factor
        loader.num_workers, loader.prefetch_factor = 1, 1
        try:
            yield
        finally:
            loader.num_workers, loader.prefetch_factor = before
