"""`IndexStream`: the indices of one epoch, drawn once from the loader's own sampler and handed out to one pool of workers after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from feedrate.trainables.tuning.random_state import RandomState
from feedrate.trainables.tuning.suitable import changed, held_values

CHECKED_DRAWS = 16
"""Number of draws, after the first, that are checked for random numbers and for a place that the sampler keeps."""


class IndexStream:
    """What the sampler yields, in its order.

    Args:
        sampler: the loader's own batch sampler, or its sampler if that yields what makes a batch.
        num_begins: how often torch would call `iter(sampler)` in this epoch. A sampler may draw its order in that call.
        check_draws: whether to notice a sampler that draws random numbers, or changes its own attributes, while the training goes on.
    """

    def __init__(self, sampler: Any, *, num_begins: int, check_draws: bool) -> None:
        self._sampler = sampler
        self._indices: Iterator[Any] = iter(sampler)
        self._begins_left = num_begins - 1
        self._again: deque[Any] = deque()
        self._checks_left = CHECKED_DRAWS + 1 if check_draws else 0
        self.is_over = False
        self.error: Exception | None = None
        """What the sampler raised, which is the user's own."""
        self.draws_random_numbers = False
        """Whether a draw after the first used a global random generator. Then other prefetching would change what it draws."""
        self.place: str | None = None
        """The attribute in which the sampler keeps how far it has come, if one changed with a draw. Its value depends on how far workers load ahead."""

    def __len__(self) -> int:
        return len(self._sampler)

    def draw(self) -> Any:
        """Return the indices of the next batch.

        Raises:
            StopIteration: the epoch has no more.
        """
        if self._again:
            return self._again.popleft()
        while self._begins_left:
            self._begins_left -= 1
            self._indices = iter(self._sampler)
        if self._checks_left:
            return self._checked()
        try:
            return next(self._indices)
        except StopIteration:
            self.is_over = True
            raise
        except Exception as error:
            self.error = error
            raise

    def rest(self) -> Iterator[Any] | None:
        """Return the sampler's own iterator, if all that is still to come are the rest of it; None if `draw` has more to do."""
        return None if self._again or self._begins_left or self._checks_left else self._indices

    def is_spent(self) -> bool:
        """Return whether all batches of the epoch are handed out."""
        return self.is_over and not self._again

    def give_back(self, batches: Iterable[Any]) -> None:
        """Hand these batches out again, in this order, before any other."""
        self._again.extendleft(reversed(list(batches)))

    def _checked(self) -> Any:
        left, self._checks_left = self._checks_left, 0
        try:
            if left > CHECKED_DRAWS:  # the first draw may still shuffle
                return self.draw()
            before, held = RandomState.now(), held_values(self._sampler, name="sampler")
            batch = self.draw()
        finally:
            self._checks_left = left - 1
        self.place = self.place or changed(held, self._sampler, name="sampler")
        self.draws_random_numbers |= before != RandomState.now()
        return batch


class Segment:
    """The part of an epoch that one pool loads: the (batch) sampler of its loader.

    Args:
        stream: the epoch's indices.
    """

    def __init__(self, stream: IndexStream) -> None:
        self._stream = stream
        self.pending: deque[Any] = deque()
        """Indices of the batches that the pool has taken and not yet delivered, in order."""
        self.has_ended = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.has_ended:
            raise StopIteration
        batch = self._stream.draw()
        self.pending.append(batch)
        return batch

    def __len__(self) -> int:
        return len(self._stream)
