"""The time budget of a search: wall time, without the time in which every running trial waits for its turn on a host.

A trial waits while another search measures on its host, or holds the cluster's slots. As long as at least one trial measures, time
is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable


class Budget:
    """A clock that stands still while nothing can be measured.

    Args:
        budget_s: the whole budget.
        clock: returns seconds since 1970.
    """

    def __init__(self, budget_s: float, clock: Callable[[], float]) -> None:
        self.budget_s, self.clock = budget_s, clock
        self.started_unix_s = clock()
        self._began: dict[Hashable, float] = {}
        self._waiting: set[Hashable] = set()
        self._stood_s = 0.0
        self._stands_since: float | None = None

    def asked(self, key: Hashable) -> None:
        """Note that a trial has been asked for."""
        self._began[key] = self.clock()
        self._turn()

    def waits(self, key: Hashable) -> None:
        """Note that a trial has to wait before it can begin."""
        if key in self._began:
            self._waiting.add(key)
            self._turn()

    def proceeds(self, key: Hashable) -> None:
        """Note that a trial no longer waits."""
        if key in self._waiting:
            self._waiting.discard(key)
            self._began[key] = self.clock()
            self._turn()

    def ended(self, key: Hashable) -> float:
        """Note that a trial is over; return when it began, or when its last wait ended."""
        self._waiting.discard(key)
        began = self._began.pop(key, self.clock())
        self._turn()
        return began

    def began_unix_s(self, key: Hashable) -> float:
        """Return when a running trial began, or when its last wait ended; the current time for a trial that does not run."""
        return self._began.get(key, self.clock())

    @property
    def stood_s(self) -> float:
        """Seconds for which the clock has stood still."""
        return self._stood_s + (self.clock() - self._stands_since if self._stands_since is not None else 0.0)

    def seconds_left(self) -> float:
        """Return the seconds left; below 0 if the budget is overspent."""
        return self.budget_s - (self.clock() - self.started_unix_s - self.stood_s)

    def _turn(self) -> None:
        """Stop the clock if every trial waits, else let it run."""
        stands = bool(self._began) and len(self._waiting) == len(self._began)
        if stands and self._stands_since is None:
            self._stands_since = self.clock()
        elif not stands and self._stands_since is not None:
            self._stood_s += self.clock() - self._stands_since
            self._stands_since = None
