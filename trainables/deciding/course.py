"""`Course`: the course of a training in time, as few points as a plot needs."""

from __future__ import annotations

from collections.abc import Callable

from feedrate.trainables.deciding.rate_point import RatePoint

LEAST_S = 2.0
PER_TRAINING = 200
"""A point covers LEAST_S or this share of the training so far, whichever is longer: a day of training has about 1,500 points."""


class Course:
    """Gathers batches until they make a point. A point never has batches of two settings."""

    def __init__(self) -> None:
        self._num_workers: int | None = None
        self._ends_s = LEAST_S
        self._clear()
        self._points: list[RatePoint] = []

    def add(self, num_workers: int, wait_s: float, step_s: float, aside_s: float, elapsed: Callable[[], tuple[float, int]], num: int = 1) -> None:
        """Count batches, usually one.

        Args:
            num_workers: the setting that loaded them.
            wait_s: how long the training waited for them.
            step_s: how long it trained on them.
            aside_s: how long it did something else before the next batch; `step_s` is 0 then.
            elapsed: returns the seconds and the number of batches since the beginning of the training.
            num: how many batches.
        """
        if num_workers != self._num_workers:
            self.end(elapsed, without=wait_s + step_s + aside_s, num=num)
            self._num_workers = num_workers
        self._num += num
        self._wait_s += wait_s
        self._step_s += step_s
        self._aside_s += aside_s
        if self._wait_s + self._step_s + self._aside_s >= self._ends_s:
            self.end(elapsed)

    def end(self, elapsed: Callable[[], tuple[float, int]], *, without: float = 0.0, num: int = 0) -> None:
        """Make a point of the batches since the last one, if there are any; `without` is time that belongs to the next, of `num` batches."""
        if self._num and self._num_workers is not None:
            time_s, step = elapsed()
            self._points.append(
                RatePoint(
                    num_workers=self._num_workers, time_s=max(time_s - without, 0.0), step=step - num, num_batches=self._num,
                    wait_s=self._wait_s, step_s=self._step_s, aside_s=self._aside_s,
                )
            )  # fmt: skip
            self._ends_s = max(LEAST_S, time_s / PER_TRAINING)
        self._clear()

    def take(self) -> list[RatePoint]:
        """Return the points that are new since the last call."""
        points, self._points = self._points, []
        return points

    def _clear(self) -> None:
        self._num, self._wait_s, self._step_s, self._aside_s = 0, 0.0, 0.0, 0.0
