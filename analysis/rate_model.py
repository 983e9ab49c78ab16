"""A model of the rate of a loader: a few parameters, fitted to the measured rates. Imports NumPy only.

Workers load in parallel until the CPUs or the training step are the limit. The model is used to choose what to try, never to
report a rate: if processes compete for CPUs, it is 10 to 20 % too high.

    without workers     1 / (s + x)
    with W workers      softmin(W / s,  cores / ((c + h / B) * (1 + 0.04 * log2(W / cores))),  1 / x)

    s   seconds that one worker takes per item                  fitted
    c   CPU seconds of training process and workers per item    measured, times a fitted efficiency
    h   CPU seconds for handing a batch of B items over         measured, times the same efficiency
    x   seconds of the training step alone per item             measured at each batch size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feedrate.analysis.cpu_time import CpuTime

Array = np.ndarray[Any, np.dtype[np.float64]]
SHARPNESS = 4.0
"""Exponent of the softmin: how sharply one limit gives way to another. It lies between that of random and of regular loading times."""
CROWDING = 0.04
"""Each time the number of workers doubles beyond the number of CPUs, an item takes this fraction more CPU time. Chosen on the grids of
docs/predicting.md, on two CPUs; without it, the largest number of workers is always expected to be the fastest."""
_EFFICIENCY = np.array([1.0, 0.95, 1.05, 0.9, 1.1, 0.85, 1.15, 0.8, 1.2, 0.75, 1.25, 0.7, 1.3, 0.6, 0.5, 0.4])  # if several fit equally well, the first one is taken
_ITEM_S = np.geomspace(1e-6, 10.0, 141)


@dataclass(frozen=True, kw_only=True, slots=True)
class RateModel:
    """The fitted model, which gives the rate of any setting in items per second.

    Attributes:
        item_s: seconds that one worker takes per item.
        cap_sps: rate that the CPUs allow for loading and training together, in large batches and with no more workers than CPUs; infinite
            if it is not known.
        ceilings: batch size (0 for none) -> items per second of the training step alone.
        batch_items: handing a batch over from a worker takes as much CPU time as loading and training this many items.
        num_cpus: CPUs that training and workers share; None if it is not known.
    """

    item_s: float
    cap_sps: float
    ceilings: Mapping[int, float]
    batch_items: float = 0.0
    num_cpus: float | None = None

    def log_rate(self, num_workers: Array, batch_size: Array) -> Array:
        """Return log(items per second), with the shape of the arguments."""
        parameters = np.array([self.item_s]), np.array([self.cap_sps])
        overhead = _overhead(self.batch_items, self.num_cpus, num_workers, batch_size)
        return np.asarray(_log_rate(*parameters, self.ceiling(batch_size), overhead, num_workers)[0])

    def ceiling(self, batch_size: Array) -> Array:
        """Return items per second of the training step alone; if it is not known at a batch size, that of the nearest known one."""
        return _ceiling(self.ceilings, batch_size)

    def cap_at(self, batch_size: int | None) -> float:
        """Return the rate that the CPUs allow at a batch size, with no more workers than CPUs."""
        return float(self.cap_sps / _overhead(self.batch_items, None, np.zeros(1), np.array([batch_size or 0.0]))[0])

    def known_ceiling(self, batch_size: Array) -> Array:
        """Return items per second of the training step alone; infinite at batch sizes at which it is not known."""
        return np.array([self.ceilings.get(int(size), np.inf) for size in batch_size])


def fit_model(
    num_workers: Sequence[int],
    batch_size: Sequence[int],
    log_sps: Sequence[float],
    ceilings: Mapping[int, float],
    cpu_time: CpuTime | None,
    num_cpus: int | None,
) -> RateModel:
    """Return the model whose parameters, from a grid, have the least squared error of log(rate).

    Args:
        num_workers, batch_size: of the measured settings, shape (settings,); a batch size that is not known is 0.
        log_sps: log of their rates, shape (settings,).
        ceilings: as in RateModel.
        cpu_time: of training process and workers; None if it is not known.
        num_cpus: CPUs that a trial may use; None if it is not known.
    """
    caps, batch_items = np.array([np.inf]), 0.0
    if cpu_time is not None and num_cpus:
        caps, batch_items = _EFFICIENCY * num_cpus / cpu_time.item_s, cpu_time.batch_items
    item_s, cap_sps = (each.ravel() for each in np.meshgrid(_ITEM_S, caps))
    workers, sizes = np.asarray(num_workers, dtype=float), np.asarray(batch_size, dtype=float)
    predicted = _log_rate(item_s, cap_sps, _ceiling(ceilings, sizes), _overhead(batch_items, num_cpus, workers, sizes), workers)
    error = ((predicted - np.asarray(log_sps)) ** 2).sum(axis=1)
    best = int(np.argmin(error))
    return RateModel(item_s=float(item_s[best]), cap_sps=float(cap_sps[best]), ceilings=dict(ceilings), batch_items=batch_items, num_cpus=num_cpus)


def _overhead(batch_items: float, num_cpus: float | None, num_workers: Array, batch_size: Array) -> Array:
    """Return by how much handing batches over, and more workers than CPUs, multiply the CPU time of an item."""
    sizes = np.asarray(batch_size, dtype=float)
    crowd = 1 + CROWDING * np.log2(np.maximum(num_workers / num_cpus, 1)) if num_cpus else 1.0
    return np.asarray(crowd * (1 + batch_items / np.where(sizes > 0, sizes, np.inf)))


def _log_rate(item_s: Array, cap_sps: Array, ceiling_sps: Array, overhead: Array, num_workers: Array) -> Array:
    """Return log(items per second), shape (parameters, settings)."""
    step_s = 1 / ceiling_sps
    alone = -np.log(item_s[:, None] + step_s[None, :])
    slowness = np.outer(item_s**SHARPNESS, np.maximum(num_workers, 1.0) ** -SHARPNESS)
    slowness += np.outer(cap_sps**-SHARPNESS, overhead**SHARPNESS) + step_s**SHARPNESS
    return np.asarray(np.where(num_workers[None, :] == 0, alone, -np.log(slowness) / SHARPNESS))


def _ceiling(ceilings: Mapping[int, float], batch_size: Array) -> Array:
    if not ceilings:
        return np.full(np.shape(batch_size), np.inf)
    known = np.array(sorted(ceilings), dtype=float)
    rates = np.array([ceilings[int(size)] for size in known])
    return np.asarray(rates[np.abs(known[None, :] - np.asarray(batch_size)[:, None]).argmin(axis=1)])
