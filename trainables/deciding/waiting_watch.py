"""`WaitingWatch`: notices that a training waits for its loader more than it did, for longer than a moment."""

from __future__ import annotations

from feedrate.trainables.deciding.window import Window

GROWTH, RELEASE = 0.05, 0.025
"""Waiting has grown once its share is higher by GROWTH; only below RELEASE does it count as having fallen again."""
GREAT_GROWTH = 0.2
"""After such a growth the training is another one than when the settings were chosen."""
FOR_S = 60.0
LOST_S = 10.0
"""Waiting that has grown is reported after FOR_S, or as soon as the training has lost LOST_S by it: as much as looking again may lose in any case (budget.py)."""
CHUNK_S, STEADY_S = 10.0, 5.0
"""Whether waiting has grown for FOR_S is said by means over CHUNK_S, and by how much by windows of STEADY_S at least: single windows vary."""


class WaitingWatch:
    """Compares the share of waiting with what it was when the settings were chosen.

    Args:
        usual: that share (0..1).
    """

    def __init__(self, usual: float) -> None:
        self.usual = self.latest = usual
        self._wait_s = self._taken_s = 0.0
        self._grown_s: float | None = None
        """For how long means of CHUNK_S have been higher; None if they are not."""
        self._lost_s = 0.0
        """Waiting beyond the usual, summed since the training last waited no more than usual (a cumulative sum: Page, "Continuous inspection schemes", 1954)."""
        self._grown_wait_s = self._grown_taken_s = 0.0
        """Sums over the latest windows, as far back as each of them waited more than usual."""

    @property
    def growth(self) -> float:
        """By how much the share of waiting is higher than usual now."""
        return self.latest - self.usual

    def add(self, window: Window) -> bool:
        """Count a window; return whether waiting has been higher for long enough, or has cost enough."""
        has_lasted, has_cost = self._has_lasted(window), self._has_cost(window)
        return has_lasted or has_cost

    def _has_lasted(self, window: Window) -> bool:
        self._wait_s += window.wait_s
        self._taken_s += window.duration_s
        if self._taken_s < CHUNK_S:
            return False
        taken_s, self.latest = self._taken_s, self._wait_s / self._taken_s
        self._wait_s = self._taken_s = 0.0
        if self.growth < RELEASE:
            self._grown_s, self._lost_s = None, 0.0
        elif self._grown_s is not None or self.growth >= GROWTH:
            self._grown_s = (self._grown_s or 0.0) + taken_s
        return self._grown_s is not None and self._grown_s >= FOR_S

    def _has_cost(self, window: Window) -> bool:
        more_s = window.wait_s - (self.usual + RELEASE) * window.duration_s
        self._lost_s = min(max(self._lost_s + more_s, 0.0), LOST_S)
        if more_s <= 0:
            self._grown_wait_s = self._grown_taken_s = 0.0
            return False
        self._grown_wait_s += window.wait_s
        self._grown_taken_s += window.duration_s
        latest = self._grown_wait_s / self._grown_taken_s
        if self._lost_s < LOST_S or self._grown_taken_s < STEADY_S or latest - self.usual < GROWTH:
            return False
        self.latest = max(self.latest, latest)  # the mean of CHUNK_S may be from before the change, and this one may have begun with a smaller one
        return True
