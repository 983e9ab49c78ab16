"""A model of the rate of a loader: a few parameters, fitted to the measured rates. Imports NumPy only.

Workers load in parallel until the CPUs or the training step are the limit. The model is used to choose what to try, never to
report a rate: if processes compete for CPUs, it is 10 to 20 % too high.

    without workers     1 / (s + x)
    with W workers      softmin(W / s,  cores / c,  1 / x)

    s   seconds that one worker takes per item                  fitted
    c   CPU seconds of training process and workers per item    measured, times a fitted efficiency
    x   seconds of the training step alone per item             measured at each batch size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
SHARPNESS = 4.0
"""Exponent of the softmin: how sharply one limit gives way to another. It lies between that of random and of regular loading times."""
_EFFICIENCY = np.array([0.9, 1.0, 0.8, 1.1, 0.7, 1.2, 0.6, 1.3, 0.5, 0.4])  # if several fit equally well, the first one is taken
_ITEM_S = np.geomspace(1e-6, 10.0, 141)


@dataclass(frozen=True, kw_only=True, slots=True)
class RateModel:
    """The fitted model, which gives the rate of any setting in items per second.

    Attributes:
        item_s: seconds that one worker takes per item.
        cap_sps: rate that the CPUs allow for loading and training together; infinite if it is not known.
        ceilings: batch size (0 for none) -> items per second of the training step alone.
    """

    item_s: float
    cap_sps: float
    ceilings: Mapping[int, float]

    def log_rate(self, num_workers: Array, batch_size: Array) -> Array:
        """Return log(items per second), with the shape of the arguments."""
        parameters = np.array([self.item_s]), np.array([self.cap_sps])
        return np.asarray(_log_rate(*parameters, self.ceiling(batch_size), num_workers)[0])

    def ceiling(self, batch_size: Array) -> Array:
        """Return items per second of the training step alone; if it is not known at a batch size, that of the nearest known one."""
        return _ceiling(self.ceilings, batch_size)

    def known_ceiling(self, batch_size: Array) -> Array:
        """Return items per second of the training step alone; infinite at batch sizes at which it is not known."""
        return np.array([self.ceilings.get(int(size), np.inf) for size in batch_size])


def fit_model(
    num_workers: Sequence[int],
    batch_size: Sequence[int],
    log_sps: Sequence[float],
    ceilings: Mapping[int, float],
    cpu_item_s: float | None,
    num_cpus: int | None,
) -> RateModel:
    """Return the model whose parameters, from a grid, have the least squared error of log(rate).

    Args:
        num_workers, batch_size: of the measured settings, shape (settings,); a batch size that is not known is 0.
        log_sps: log of their rates, shape (settings,).
        ceilings: as in RateModel.
        cpu_item_s: CPU seconds of training process and workers per item; None if it is not known.
        num_cpus: CPUs that a trial may use; None if it is not known.
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
    """Return log(items per second), shape (parameters, settings)."""
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
