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
CHUNK_S = 10.0
"""Shares of the time are means over this long: single windows vary."""


class WaitingWatch:
    """Compares the share of waiting with what it was when the settings were chosen.

    Args:
        usual: that share (0..1).
    """

    def __init__(self, usual: float) -> None:
        self.usual = self.latest = usual
        self._wait_s = self._taken_s = 0.0
        self._grown_s: float | None = None
        """For how long waiting has been higher; None if it is not."""
        self._lost_s = 0.0
        """What the training has waited beyond the usual meanwhile."""

    @property
    def growth(self) -> float:
        """By how much the share of waiting is higher than usual now."""
        return self.latest - self.usual

    def add(self, window: Window) -> bool:
        """Count a window; return whether waiting has been higher for long enough, or has cost enough."""
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
            self._lost_s += self.growth * taken_s
        return self._grown_s is not None and (self._grown_s >= FOR_S or self._lost_s >= LOST_S)
