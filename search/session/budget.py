"""The time that a search has: wall time, without that in which every trial under way waits for its turn on a host.

A trial waits where another search measures on its host, or holds the cluster's slots. While one of several measures, time
is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable


class Budget:
    """A clock that stands still while nothing can be measured.

    Args:
        budget_s: what there is of it.
        clock: seconds since 1970.
    """

    def __init__(self, budget_s: float, clock: Callable[[], float]) -> None:
        self.budget_s, self.clock = budget_s, clock
        self.started_unix_s = clock()
        self._began: dict[Hashable, float] = {}
        self._waiting: set[Hashable] = set()
        self._stood_s = 0.0
        self._stands_since: float | None = None

    def asked(self, key: Hashable) -> None:
        """A trial is under way."""
        self._began[key] = self.clock()
        self._turn()

    def waits(self, key: Hashable) -> None:
        """It has to wait before it can begin."""
        if key in self._began:
            self._waiting.add(key)
            self._turn()

    def proceeds(self, key: Hashable) -> None:
        """It waits no longer."""
        if key in self._waiting:
            self._waiting.discard(key)
            self._began[key] = self.clock()
            self._turn()

    def ended(self, key: Hashable) -> float:
        """It is over; gives when it began, waiting apart."""
        self._waiting.discard(key)
        began = self._began.pop(key, self.clock())
        self._turn()
        return began

    def began_unix_s(self, key: Hashable) -> float:
        """When a trial under way began, waiting apart; now for one that is not."""
        return self._began.get(key, self.clock())

    @property
    def stood_s(self) -> float:
        """How long the clock has stood still."""
        return self._stood_s + (self.clock() - self._stands_since if self._stands_since is not None else 0.0)

    def seconds_left(self) -> float:
        """Below 0 when it is overspent."""
        return self.budget_s - (self.clock() - self.started_unix_s - self.stood_s)

    def _turn(self) -> None:
        """Stop the clock, or let it go on."""
        stands = bool(self._began) and len(self._waiting) == len(self._began)
        if stands and self._stands_since is None:
            self._stands_since = self.clock()
        elif not stands and self._stands_since is not None:
            self._stood_s += self.clock() - self._stands_since
            self._stands_since = None
