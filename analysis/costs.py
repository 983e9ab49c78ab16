"""`Costs`: what loading and training an item cost on a machine, and the rate that follows from queueing for the CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from feedrate.analysis.cpu_time import Array
from feedrate.analysis.rate_model import SHARPNESS

ENOUGH_FRACTION = 0.98
"""Of numbers of workers that reach this share of the best predicted rate, the smallest one is named."""
_LEAST_S = 1e-9
"""No item is taken to load faster than this, so that nothing is divided by 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What an item costs at one batch size.

    Attributes:
        load_cpu_s: CPU seconds of loading it in a worker.
        load_wait_s: seconds in which the worker waits meanwhile.
        step_s: seconds of the training step alone.
        step_cpu_s: CPU seconds of everything else for it: the training process, and handing batches over.
        step_cpus: CPUs that the step alone keeps busy.
        num_cpus: CPUs that training and workers share.
    """

    load_cpu_s: float
    load_wait_s: float
    step_s: float
    step_cpu_s: float
    step_cpus: float
    num_cpus: float

    def sps(self, most: int) -> tuple[float, int]:
        """Return the highest rate with 0 to `most` workers, and the smallest number of workers that is close to it."""
        return best_rate(self.rates(most))

    def rates(self, most: int) -> list[float]:
        """Return the items per second with 0, 1, ... `most` workers."""
        step_s = max(self.step_s, self.step_cpu_s / self.num_cpus)
        alone_s = max(self.load_cpu_s + self.load_wait_s + step_s, (self.load_cpu_s + self.step_cpu_s) / self.num_cpus)
        loaded_sps = map(self._loaded_sps, range(1, most + 1))
        return [1 / alone_s, *(float((each**-SHARPNESS + step_s**SHARPNESS) ** (-1 / SHARPNESS)) for each in loaded_sps)]

    def _loaded_sps(self, num_workers: int) -> float:
        """Return the items per second that the workers load if the step is no limit.

        Each worker takes turns at waiting and at computing. Those that compute share the CPUs with the step: the more of them compute, the
        slower each is. It is the machine repairman model (Kleinrock, Queueing Systems, 1975, chapter 3): with n workers computing, they finish
        items at rate mu(n), and the others begin to compute at rate (num_workers - n) / load_wait_s. Because the CPUs are shared evenly,
        the rate does not depend on how the times are distributed (Baskett, Chandy, Muntz and Palacios, 1975).
        """
        load_s = max(self.load_cpu_s, _LEAST_S)
        busy = np.arange(1, num_workers + 1)
        mu = np.minimum(busy / load_s, self.num_cpus / (load_s + self.step_cpu_s))
        if self.load_wait_s <= 0:
            return float(mu[-1])
        logs = np.cumsum(np.log((num_workers - busy + 1) / self.load_wait_s) - np.log(mu))
        top = max(logs.max(), 0.0)  # log of the largest weight; that of the state in which no worker computes is 0
        weights = np.exp(logs - top)
        return float((weights * mu).sum() / (weights.sum() + np.exp(-top)))


def best_rate(sps: Sequence[float] | Array) -> tuple[float, int]:
    """Return the highest of the rates with 0, 1, ... workers, and the smallest number of workers that is close to it."""
    rates = np.asarray(sps)
    return float(rates.max()), int(np.flatnonzero(rates >= ENOUGH_FRACTION * rates.max())[0])
