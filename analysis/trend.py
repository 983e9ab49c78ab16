"""Was the rate of a trial still changing? A test for a trend over its windows, against their spread. Standard library only.

Caches that fill, files that warm up and processors that grow hot move the rate in one direction. Bartholomew's test compares
the windows with the best-fitting sequence that never falls (or never rises): the share of their squared deviations from the
mean that this sequence explains is large for any change in one direction, whether step or slope. Under noise alone its
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
"""Fewer windows cannot tell a trend from noise: 4 windows are in perfect order by chance once in 24 times."""
CHANGE_FRACTION = 0.1
"""A smaller change between the first and the last windows counts as part of the interval: rates are compared to a few per cent."""
END_WINDOWS = 3
"""Number of windows at either end whose medians are compared, so that one outlier is no change. Also the number of last windows
that count if the rate still changes."""
FIRST_EPOCH_S = 6.0
"""If the first epoch ends within this time, a trial measures the next one too: what a dataset keeps, or the page cache, makes only later epochs faster."""
_CRITICAL = {
    5: 0.9999, 6: 0.994, 7: 0.9702, 8: 0.9367, 9: 0.8993, 10: 0.8613, 12: 0.7894, 14: 0.7258, 17: 0.646, 20: 0.5815, 25: 0.4988,
    30: 0.4372, 40: 0.3519, 50: 0.2954, 60: 0.2552,
}  # fmt: skip
"""Number of windows -> share of the rates' variance that the best monotone sequence explains, by noise alone, in one of 200 trials (of 120 for 5 windows); for each direction."""


@dataclass(frozen=True, slots=True)
class Lasting:
    """Which windows show the rate that lasts."""

    first: int
    """The first window that counts; if the rate was still changing, the first of the last END_WINDOWS windows."""
    change_fraction: float | None
    """Rate of the last windows over that of the first ones, minus 1, if the rate was still changing when they ended; 0 if it was
    not; None if there are too few windows to tell."""
    direction: int = 0
    """1 if the rate rose (before it became steady, or until the windows ended), -1 if it fell, 0 if neither is known."""


def lasting(rates: Sequence[float]) -> Lasting:
    """Separate the windows that show the lasting rate from those before them.

    The windows that count begin as early as possible within the first half, such that they show no trend. If even the second
    half shows a trend, the rate was still changing.

    Args:
        rates: of windows of about equal length, in the order of time.
    """
    num = len(rates)
    if num < MIN_WINDOWS:
        return Lasting(0, None)
    for first in range(min(num // 2, num - MIN_WINDOWS) + 1):
        # once there is a trend, not even one window of its beginning may count
        if not direction(rates[first:], num_first=1 if first else END_WINDOWS):
            return Lasting(first, 0.0, direction(rates))
    return Lasting(num - END_WINDOWS, change_of(rates), direction(rates))


def direction(rates: Sequence[float], num_first: int = END_WINDOWS) -> int:
    """Return 1 if the rates rise, -1 if they fall, and 0 if noise explains them or there are too few to tell.

    Args:
        rates: of windows, in the order of time.
        num_first: number of first windows whose median must differ from that of the last ones by CHANGE_FRACTION.
    """
    if len(rates) < MIN_WINDOWS:
        return 0
    change = change_of(rates, num_first)
    if change >= CHANGE_FRACTION and _explained(rates) >= critical(len(rates)):
        return 1
    falls = change <= 1 / (1 + CHANGE_FRACTION) - 1
    return -1 if falls and _explained([-rate for rate in rates]) >= critical(len(rates)) else 0


def open_factor(rates: Sequence[float]) -> float:
    """Return the factor by which a changing rate may change further: as much again as in its second half, at least CHANGE_FRACTION."""
    middle = len(rates) // 2
    half = statistics.median(rates[-END_WINDOWS:]) / max(statistics.median(rates[middle - 1 : middle + 2]), 1e-9)
    return max(half, 1 + CHANGE_FRACTION) if change_of(rates) > 0 else min(half, 1 / (1 + CHANGE_FRACTION))


def in_first_epoch(duration_s: Sequence[float], num_items: Sequence[int], epoch_samples: int | None) -> bool:
    """Return whether fewer than END_WINDOWS of a trial's windows lie after its first epoch, although that epoch takes at most FIRST_EPOCH_S.

    Such a trial is worth continuing, because the rate may change when samples come for the second time. False for longer epochs.

    Args:
        duration_s: wall time of each window, shape (windows,).
        num_items: items trained in each window, shape (windows,).
        epoch_samples: items per epoch; None if unknown.
    """
    seen, taken_s = sum(num_items), sum(duration_s)
    if not epoch_samples or not seen or sum(num_items[:-END_WINDOWS]) >= epoch_samples:
        return False
    return seen >= epoch_samples or epoch_samples * taken_s / seen <= FIRST_EPOCH_S


def critical(num_windows: int) -> float:
    """Return the share of the squared deviations that noise alone exceeds once in 200 times; between listed numbers, a little more."""
    known = list(_CRITICAL)
    if num_windows >= known[-1]:
        return _CRITICAL[known[-1]]
    above = known[bisect.bisect_left(known, num_windows)]
    below = known[bisect.bisect_right(known, num_windows) - 1]
    share = 0.0 if above == below else (num_windows - below) / (above - below)
    return (1 - share) * _CRITICAL[below] + share * _CRITICAL[above]


def change_of(rates: Sequence[float], num_first: int = END_WINDOWS) -> float:
    """Return the median of the last windows over that of the first ones, minus 1; 0 if one of them is 0."""
    first, last = statistics.median(rates[:num_first]), statistics.median(rates[-END_WINDOWS:])
    return last / first - 1 if first > 0 and last > 0 else 0.0


def _explained(values: Sequence[float]) -> float:
    """Return the share of the squared deviations from the mean that the best sequence that never falls explains (0..1)."""
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
