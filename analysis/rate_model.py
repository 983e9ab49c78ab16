"""A model of the rate of a loader: a few parameters, fitted to the measured rates. Imports NumPy only.

Workers load in parallel until the CPUs or the training step are the limit. The model is used to choose what to try, never to
report a rate: if processes compete for CPUs, it is 10 to 20 % too high.

    without workers     1 / (s + x)
    with W workers      softmin(W / s,  u * cpus / ((c + k * x + h / B) * (1 + 0.04 * log2(W / cpus))),  1 / x)

    s   seconds that one worker takes per item                               fitted
    u   share of the CPUs' time that can be used                             fitted
    c   CPU seconds for loading an item, and whatever else training it takes measured
    k   CPUs that the training step alone keeps busy                         measured
    h   CPU seconds for handing a batch of B items over                      measured
    x   seconds of the training step alone per item                          measured at each batch size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feedrate.analysis.cpu_time import Array, CpuTime, ceiling_at

SHARPNESS = 3.5
"""Exponent of the softmin: how sharply one limit gives way to another. Chosen on the grids of docs/predicting.md."""
CROWDING = 0.04
"""Each time the number of workers doubles beyond the number of CPUs, an item takes this fraction more CPU time. Chosen on the same grids,
on two CPUs; without it, the largest number of workers is always expected to be the fastest."""
RATE_SD = 0.05
"""Standard deviation of log(rate) about the model that is assumed while fitting it."""
EFFICIENCY_SD = 0.5
"""Standard deviation of log(efficiency) before anything is measured. Where workers mostly wait, rates cannot tell a low efficiency from
slow workers; without this, a small difference between rates would be explained by CPUs of which half cannot be used."""
_EFFICIENCY = np.exp(0.025 * np.arange(-37, 20))  # 0.4 to 1.6
_ITEM_S = np.geomspace(1e-6, 10.0, 281)


@dataclass(frozen=True, kw_only=True, slots=True)
class RateModel:
    """The fitted model, which gives the rate of any setting in items per second.

    Attributes:
        item_s: seconds that one worker takes per item.
        ceilings: batch size (0 for none) -> items per second of the training step alone.
        cpu_time: of training process and workers; None if it is not known, and then the CPUs are no limit.
        efficiency: share of the CPUs' time that they can use. It may exceed 1, because CPU time per item differs between settings.
        num_cpus: CPUs that training and workers share; None if it is not known, and then they are no limit.
    """

    item_s: float
    ceilings: Mapping[int, float]
    cpu_time: CpuTime | None = None
    efficiency: float = 1.0
    num_cpus: float | None = None

    def log_rate(self, num_workers: Array, batch_size: Array) -> Array:
        """Return log(items per second), with the shape of the arguments."""
        ceiling_sps = self.ceiling(batch_size)
        cpus_s = _cpus_s(self.cpu_time, self.num_cpus, num_workers, batch_size, ceiling_sps)
        return np.asarray(_log_rate(np.array([self.item_s]), np.array([self.efficiency]), ceiling_sps, cpus_s, num_workers)[0])

    def ceiling(self, batch_size: Array) -> Array:
        """Return items per second of the training step alone; if it is not known at a batch size, that of the nearest known one."""
        return ceiling_at(self.ceilings, batch_size)

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
    """Return the most likely model: of a grid of `item_s` and `efficiency`, the one with the least squared error of log(rate).

    Args:
        num_workers, batch_size: of the measured settings, shape (settings,); a batch size that is not known is 0.
        log_sps: log of their rates, shape (settings,).
        ceilings: as in RateModel.
        cpu_time: of training process and workers; None if it is not known.
        num_cpus: CPUs that a trial may use; None if it is not known.
    """
    able = _EFFICIENCY if cpu_time is not None and num_cpus else np.ones(1)
    item_s, efficiency = (each.ravel() for each in np.meshgrid(_ITEM_S, able))
    workers, sizes = np.asarray(num_workers, dtype=float), np.asarray(batch_size, dtype=float)
    ceiling_sps = ceiling_at(ceilings, sizes)
    predicted = _log_rate(item_s, efficiency, ceiling_sps, _cpus_s(cpu_time, num_cpus, workers, sizes, ceiling_sps), workers)
    squares = ((predicted - np.asarray(log_sps)) ** 2).sum(axis=1) / RATE_SD**2 + (np.log(efficiency) / EFFICIENCY_SD) ** 2
    best = int(np.argmin(squares))
    return RateModel(item_s=float(item_s[best]), efficiency=float(efficiency[best]), ceilings=dict(ceilings), cpu_time=cpu_time, num_cpus=num_cpus)


def _cpus_s(cpu_time: CpuTime | None, num_cpus: float | None, num_workers: Array, batch_size: Array, ceiling_sps: Array) -> Array:
    """Return the seconds per item for which loading, training and handing over keep all CPUs busy; 0 if that is not known."""
    if cpu_time is None or not num_cpus:
        return np.zeros(np.shape(num_workers))
    crowd = 1 + CROWDING * np.log2(np.maximum(num_workers / num_cpus, 1))
    return np.asarray(crowd * cpu_time.of_item(batch_size, 1 / ceiling_sps) / num_cpus)


def _log_rate(item_s: Array, efficiency: Array, ceiling_sps: Array, cpus_s: Array, num_workers: Array) -> Array:
    """Return log(items per second), shape (parameters, settings)."""
    step_s = 1 / ceiling_sps
    alone = -np.log(item_s[:, None] + step_s[None, :])
    slowness = np.outer(item_s**SHARPNESS, np.maximum(num_workers, 1.0) ** -SHARPNESS)
    slowness += np.outer(efficiency**-SHARPNESS, cpus_s**SHARPNESS) + step_s**SHARPNESS
    return np.asarray(np.where(num_workers[None, :] == 0, alone, -np.log(slowness) / SHARPNESS))

