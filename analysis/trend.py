"""Whether the rate of a trial was still changing: a trend over its windows, told from their spread. Standard library only.

Caches that fill, files that warm up and processors that grow hot move the rate in one direction. Bartholomew's test compares
the windows with the best sequence that never falls (or never rises): the share of their squared deviations from the mean
that this sequence explains is large for any change in one direction, a step as well as a slope. Under noise alone its
distribution is known exactly: P(share >= c) = sum over l of |s(n, l)| / n! * P(Beta((l - 1) / 2, (n - l) / 2) >= c), with
the Stirling numbers of the first kind s(n, l) (D. J. Bartholomew, A test of homogeneity for ordered alternatives,
Biometrika 46, 1959, 36-48; Barlow, Bartholomew, Bremner and Brunk, Statistical Inference under Order Restrictions, 1972, 3.2).
The sequence itself comes from pooling adjacent violators (the same book, 1.2).
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MIN_WINDOWS = 5
"""Fewer windows cannot tell a trend from noise: even in perfect order, 4 windows come by chance once in 24 times."""
CHANGE_FRACTION = 0.1
"""A smaller change between the first and the last windows is left to the interval: answers are compared to a few per cent."""
END_WINDOWS = 3
"""Windows at either end whose median is compared, so that one outlier is no change; and the end of a rate that still changes."""
FIRST_EPOCH_S = 6.0
"""A first epoch that is over within this time is waited for: what a dataset or the page cache keeps shows only afterwards."""
_CRITICAL = {
    5: 0.9999, 6: 0.994, 7: 0.9702, 8: 0.9367, 9: 0.8993, 10: 0.8613, 12: 0.7894, 14: 0.7258, 17: 0.646, 20: 0.5815, 25: 0.4988,
    30: 0.4372, 40: 0.3519, 50: 0.2954, 60: 0.2552,
}  # fmt: skip
"""Number of windows -> share that noise alone exceeds once in 200 times in either direction (5 windows: once in 120 times)."""


@dataclass(frozen=True, slots=True)
class Lasting:
    """Which windows tell the rate that lasts."""

    first: int
    """The first window that counts; the end of the trial where the rate was still changing."""
    change_fraction: float | None
    """Rate of the last windows over that of the first ones, minus 1, where the rate was still changing when they ended; 0 where it
    was not; None where there are too few windows to say."""
    direction: int = 0
    """1 where the rate rose before it lasted or the windows ended, -1 where it fell, 0 where neither is known."""


def lasting(rates: Sequence[float]) -> Lasting:
    """Tell the windows of the lasting rate from those before it.

    The windows that count begin as early as possible, within the first half, so that the rest shows no trend. Where even the
    second half shows one, the rate was still changing.

    Args:
        rates: of windows of about the same length, in the order of time.
    """
    num = len(rates)
    if num < MIN_WINDOWS:
        return Lasting(0, None)
    for first in range(min(num // 2, num - MIN_WINDOWS) + 1):
        # once there is a trend, a single window of its beginning is too many
        if not direction(rates[first:], num_first=1 if first else END_WINDOWS):
            return Lasting(first, 0.0, direction(rates))
    return Lasting(num - END_WINDOWS, change_of(rates), direction(rates))


def direction(rates: Sequence[float], num_first: int = END_WINDOWS) -> int:
    """Return 1 where the rates rise, -1 where they fall, and 0 where noise explains them or they are too few to say.

    Args:
        rates: of windows, in the order of time.
        num_first: windows at the beginning whose median the last ones must differ from by CHANGE_FRACTION.
    """
    if len(rates) < MIN_WINDOWS:
        return 0
    change = change_of(rates, num_first)
    if change >= CHANGE_FRACTION and _explained(rates) >= critical(len(rates)):
        return 1
    falls = change <= 1 / (1 + CHANGE_FRACTION) - 1
    return -1 if falls and _explained([-rate for rate in rates]) >= critical(len(rates)) else 0


def open_factor(rates: Sequence[float]) -> float:
    """By what factor a rate that is still changing may change further: as much again as in its second half, at least CHANGE_FRACTION."""
    middle = len(rates) // 2
    half = statistics.median(rates[-END_WINDOWS:]) / max(statistics.median(rates[middle - 1 : middle + 2]), 1e-9)
    return max(half, 1 + CHANGE_FRACTION) if change_of(rates) > 0 else min(half, 1 / (1 + CHANGE_FRACTION))


def in_first_epoch(duration_s: Sequence[float], num_items: Sequence[int], epoch_samples: int | None) -> bool:
    """Whether a trial has not had END_WINDOWS windows after its first epoch, which is over within FIRST_EPOCH_S.

    The rate may change when samples come for the second time.

    Args:
        duration_s: wall time of each window, shape (windows,).
        num_items: items trained in each, shape (windows,).
        epoch_samples: items of an epoch; None when unknown.
    """
    seen, taken_s = sum(num_items), sum(duration_s)
    if not epoch_samples or not seen or sum(num_items[:-END_WINDOWS]) >= epoch_samples:
        return False
    return seen >= epoch_samples or epoch_samples * taken_s / seen <= FIRST_EPOCH_S


def critical(num_windows: int) -> float:
    """The share of the squared deviations that noise alone exceeds once in 200 times; between listed numbers a little more."""
    known = list(_CRITICAL)
    if num_windows >= known[-1]:
        return _CRITICAL[known[-1]]
    above = known[bisect.bisect_left(known, num_windows)]
    below = known[bisect.bisect_right(known, num_windows) - 1]
    share = 0.0 if above == below else (num_windows - below) / (above - below)
    return (1 - share) * _CRITICAL[below] + share * _CRITICAL[above]


def change_of(rates: Sequence[float], num_first: int = END_WINDOWS) -> float:
    """Median of the last windows over that of the first ones, minus 1; 0 where one of them is 0."""
    first, last = statistics.median(rates[:num_first]), statistics.median(rates[-END_WINDOWS:])
    return last / first - 1 if first > 0 and last > 0 else 0.0


def _explained(values: Sequence[float]) -> float:
    """Share of the squared deviations from the mean that the best sequence explains that never falls (0..1)."""
    mean = statistics.fmean(values)
    total = sum((value - mean) ** 2 for value in values)
    if total == 0:
        return 0.0
    pools: list[tuple[float, int]] = []
    for value in values:
        level, size = value, 1
        while pools and pools[-1][0] >= level:
            other, others = pools.pop()
            level, size = (level * size + other * others) / (size + others), size + others
        pools.append((level, size))
    return sum(size * (level - mean) ** 2 for level, size in pools) / total
