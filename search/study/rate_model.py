"""What a loader's rate should be from how loading works: a few parameters, fitted to what was measured. NumPy only.

MEASURING.md 4: workers load side by side until the CPUs or the training step are the limit. Used to choose what to
try, never to report: under contention it is 10 to 20 % too high.

    without workers     1 / (s + x)
    with W workers      softmin(W / s,  cores / c,  1 / x)

    s   seconds one worker takes for an item        fitted
    c   CPU seconds of trainer and workers an item  measured, times a fitted efficiency
    x   seconds of the training step an item        measured at each batch size, alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
SHARPNESS = 4.0
"""Of the bend where one limit gives way to another; between that of random and of regular loading times."""
_EFFICIENCY = np.array([0.9, 1.0, 0.8, 1.1, 0.7, 1.2, 0.6, 1.3, 0.5, 0.4])  # of equals the first, while nothing shows it
_ITEM_S = np.geomspace(1e-6, 10.0, 141)


@dataclass(frozen=True, kw_only=True, slots=True)
class RateModel:
    """Rates of settings in items per second.

    Attributes:
        item_s: seconds one worker takes for an item.
        cap_sps: what the CPUs allow, training included; infinite where it is not known.
        ceilings: batch size (0 for none) -> items per second of the training step alone.
    """

    item_s: float
    cap_sps: float
    ceilings: Mapping[int, float]

    def log_rate(self, num_workers: Array, batch_size: Array) -> Array:
        """log(items per second), shape as the arguments'."""
        parameters = np.array([self.item_s]), np.array([self.cap_sps])
        return np.asarray(_log_rate(*parameters, self.ceiling(batch_size), num_workers)[0])

    def ceiling(self, batch_size: Array) -> Array:
        """Items per second of the training step alone; that of the nearest batch size where it is not known."""
        return _ceiling(self.ceilings, batch_size)

    def known_ceiling(self, batch_size: Array) -> Array:
        """The same, and infinite where it is not known."""
        return np.array([self.ceilings.get(int(size), np.inf) for size in batch_size])


def fit_model(
    num_workers: Sequence[int],
    batch_size: Sequence[int],
    log_sps: Sequence[float],
    ceilings: Mapping[int, float],
    cpu_item_s: float | None,
    num_cpus: int | None,
) -> RateModel:
    """The parameters with the least squared error of log(rate) over a grid of them.

    Args:
        num_workers, batch_size: of the settings measured, 0 where the batch size is not known, shape (settings,).
        log_sps: log of their rates, shape (settings,).
        ceilings: as in RateModel.
        cpu_item_s: CPU seconds of trainer and workers for an item; None where it is not known.
        num_cpus: CPUs a trial may use.
    """
    caps = np.array([np.inf])
    if cpu_item_s and num_cpus:
        caps = _EFFICIENCY * num_cpus / cpu_item_s
    item_s, cap_sps = (each.ravel() for each in np.meshgrid(_ITEM_S, caps))
    workers, sizes = np.asarray(num_workers, dtype=float), np.asarray(batch_size, dtype=float)
    predicted = _log_rate(item_s, cap_sps, _ceiling(ceilings, sizes), workers)
    error = ((predicted - np.asarray(log_sps)) ** 2).sum(axis=1)
    best = int(np.argmin(error))
    return RateModel(item_s=float(item_s[best]), cap_sps=float(cap_sps[best]), ceilings=dict(ceilings))


def _log_rate(item_s: Array, cap_sps: Array, ceiling_sps: Array, num_workers: Array) -> Array:
    """Shape (parameters, settings)."""
    step_s = 1 / ceiling_sps
    alone = -np.log(item_s[:, None] + step_s[None, :])
    loading = np.maximum(num_workers, 1.0)[None, :] / item_s[:, None]
    slowness = loading**-SHARPNESS + cap_sps[:, None] ** -SHARPNESS + (step_s**SHARPNESS)[None, :]
    return np.asarray(np.where(num_workers[None, :] == 0, alone, -np.log(slowness) / SHARPNESS))


def _ceiling(ceilings: Mapping[int, float], batch_size: Array) -> Array:
    if not ceilings:
        return np.full(np.shape(batch_size), np.inf)
    known = np.array(sorted(ceilings), dtype=float)
    rates = np.array([ceilings[int(size)] for size in known])
    return np.asarray(rates[np.abs(known[None, :] - np.asarray(batch_size)[:, None]).argmin(axis=1)])
