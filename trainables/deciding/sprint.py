"""`Sprint`: a visit of one setting during a training, which discards its unsteady beginning and then gives windows."""

from __future__ import annotations

from collections.abc import Callable

from feedrate.trainables.deciding.window import Window

CYCLES_PER_WINDOW = 4
"""The rate of loading varies with a period of num_workers batches, so a window is 4 whole periods, or fewer that take LONG_WINDOW_S."""
MIN_WINDOW_S, LONG_WINDOW_S = 0.35, 1.0
SETTLE_S, MAX_SETTLE_S = 0.2, 3.0
WAITED_FRACTION = 0.05
"""A wait of this share of the time per batch shows that the queue of ready batches was empty."""
SLOW_FACTOR, SLOW_S = 3.0, 5.0
"""A window is cut once the setting took this many times as long as the best one, and these seconds more (for starting its workers)."""


class Sprint:
    """The batches of one setting from the moment that it is asked for.

    Args:
        num_workers: the setting.
        prefetch_factor: batches that each worker loads ahead.
        best_batch_s: seconds per batch of the best known setting; None if there is none.
    """

    def __init__(self, num_workers: int, prefetch_factor: int, best_batch_s: float | None) -> None:
        self.num_workers = num_workers
        self._cycle = max(num_workers, 1)
        self._full = num_workers * prefetch_factor
        self._best_batch_s = best_batch_s
        self._settled = False
        self._since_waited = 0
        self._clear()
        self.total_s, self.num_batches = 0.0, 0
        """Time and number of batches since the training came to this setting, discarded windows included."""

    def interrupt(self) -> None:
        """Discard the window that has begun: the training did something else, and the queue of batches filled meanwhile."""
        self._settled = False
        self._clear()

    def passed(self, wait_s: float, step_s: float, num: int = 1) -> None:
        """Count batches that still came from the earlier setting."""
        self.total_s += wait_s + step_s
        self.num_batches += num

    def add(self, wait_s: float, step_s: float, num_ready: Callable[[], int], num: int = 1) -> Window | None:
        """Count batches, usually one; return a window if it is complete.

        Args:
            wait_s: how long the training waited for them.
            step_s: how long it trained on them.
            num_ready: returns how many batches are finished and not yet taken.
            num: their number.
        """
        self.passed(wait_s, step_s, num)
        self._num += num
        self._wait_s += wait_s
        self._step_s += step_s
        taken_s = self._wait_s + self._step_s
        self._since_waited = 0 if wait_s / num * self._num > WAITED_FRACTION * taken_s else self._since_waited + num
        if self._is_far_too_slow():
            return self._window(is_cut=True)
        if not self._settled:
            if self._has_settled(taken_s, num_ready):
                self._settled = True
                self._clear()
            return None
        is_long = taken_s >= LONG_WINDOW_S or self._num >= CYCLES_PER_WINDOW * self._cycle
        if taken_s >= MIN_WINDOW_S and is_long and self._num % self._cycle == 0:
            return self._window()
        return None

    def is_whole(self, num: int) -> bool:
        """Return whether so many further batches end a production cycle."""
        return (self._num + num) % self._cycle == 0

    def _has_settled(self, taken_s: float, num_ready: Callable[[], int]) -> bool:
        """Whether workers that started together have drifted apart, and the queue of ready batches is either empty or full.

        While it empties, the training is faster than the setting lasts; while it fills, workers use CPU time that they will not need later.
        """
        if not self.num_workers:
            return True
        if self._num % self._cycle or self._num < 2 * self._cycle or taken_s < SETTLE_S:
            return False
        return self._since_waited < self._cycle or taken_s >= MAX_SETTLE_S or num_ready() >= self._full - self._cycle

    def _is_far_too_slow(self) -> bool:
        best_s = self._best_batch_s
        return best_s is not None and self.total_s > SLOW_S + SLOW_FACTOR * self.num_batches * best_s

    def _window(self, *, is_cut: bool = False) -> Window:
        window = Window(
            num_workers=self.num_workers, num_batches=self._num, wait_s=self._wait_s, step_s=self._step_s, is_cut=is_cut
        )
        self._clear()
        return window

    def _clear(self) -> None:
        self._num, self._wait_s, self._step_s = 0, 0.0, 0.0
