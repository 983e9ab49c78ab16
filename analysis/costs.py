"""`Costs`: what loading and training an item cost on a machine, and the rate that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from feedrate.analysis.cpu_time import Array, CpuTime
from feedrate.analysis.rate_model import RateModel

ENOUGH_FRACTION = 0.98
"""Of numbers of workers that reach this share of the best predicted rate, the smallest one is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What an item costs at one batch size.

    Attributes:
        load_cpu_s: CPU seconds of loading it in a worker.
        load_wait_s: seconds in which the worker waits meanwhile.
        step_s: seconds of the training step alone.
        step_cpu_s: CPU seconds of the training process for it, while workers load.
        step_cpus: CPUs that the step alone keeps busy.
        num_cpus: CPUs that training and workers share.
        efficiency: share of the CPUs' time that they can use, as fitted; it may exceed 1, because CPU time per item differs between settings.
    """

    load_cpu_s: float
    load_wait_s: float
    step_s: float
    step_cpu_s: float
    step_cpus: float
    num_cpus: float
    efficiency: float

    def sps(self, most: int) -> tuple[float, int]:
        """Return the highest rate with 0 to `most` workers, and the smallest number of workers that is close to it."""
        step_s = max(self.step_s, self.step_cpu_s / self.num_cpus)
        cpu_s = self.load_cpu_s + self.step_cpu_s
        model = RateModel(
            item_s=max(self.load_cpu_s + self.load_wait_s, 1e-9),
            ceilings={0: 1 / step_s},
            cpu_time=CpuTime(item_s=cpu_s),
            efficiency=self.efficiency,
            num_cpus=self.num_cpus,
        )
        rates = np.exp(model.log_rate(np.arange(most + 1.0), np.zeros(most + 1)))
        return best_rate(rates)


def best_rate(sps: Sequence[float] | Array) -> tuple[float, int]:
    """Return the highest of the rates with 0, 1, ... workers, and the smallest number of workers that is close to it."""
    rates = np.asarray(sps)
    return float(rates.max()), int(np.flatnonzero(rates >= ENOUGH_FRACTION * rates.max())[0])
