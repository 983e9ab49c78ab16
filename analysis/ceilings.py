"""`Ceilings`: at which batch sizes the rate of the training step alone is known. All conclusions from a ceiling go through here.

The step is timed on a cached batch, without loading (the columns `step_only_*`). Other work on the machine can lower that rate,
and nothing can raise it. So the ceiling is unknown in two cases: the record says that others used the machine while the step was
timed, or training with loading was faster at the same batch size, which is impossible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from feedrate.analysis.estimate import Rate, record_steady, step_only_sps
from feedrate.analysis.rounds import DISTURBED_FRACTION

LOAD = ("foreign_cpu_fraction", "foreign_gpu_fraction", "steal_fraction")
"""Columns that say how much of the machine other processes or the hypervisor took."""
IMPOSSIBLE_FRACTION = 1.1
"""A measured rate this many times the rate of the step alone contradicts it, however wide the measured rate's interval is."""
NOT_TIMED = "no trial timed the training step alone"
UNREAD = "before the trial, no batch could be read on which to time the training step"
DISTURBED = "other processes used the machine while the step was timed"


def load_fraction(record: Mapping[Any, Any]) -> float:
    """Return the largest share of the CPUs or the GPU that others took during a measurement (a record, or a row of `Run.trials`)."""
    taken = (record.get(name) for name in LOAD)
    return max((float(each) for each in taken if each is not None and not math.isnan(each)), default=0.0)


def is_disturbed(record: Mapping[Any, Any]) -> bool:
    """Return whether others took DISTURBED_FRACTION or more of the machine."""
    return load_fraction(record) >= DISTURBED_FRACTION


class Ceilings:
    """The ceilings at all batch sizes, updated with each measurement.

    Batch sizes are as in records: None if the workload's own batch sampler decides.
    """

    def __init__(self) -> None:
        self._step_sps: dict[int | None, float] = {}
        self._disturbed: set[int | None] = set()
        self._unread: set[int | None] = set()
        self._low_sps: dict[int | None, float] = {}
        self._sps: dict[int | None, float] = {}

    def learn_record(self, record: dict[str, Any]) -> None:
        """Add a record of `trials.jsonl`, or the columns of one together with its batch_size."""
        is_unread = record.get("cached_batch_failure") is not None
        self.learn(record.get("batch_size"), step_only_sps(record), record_steady(record), disturbed=is_disturbed(record), unread=is_unread)

    def learn(
        self, batch_size: int | None, step_sps: float | None, rate: Rate | None, *, disturbed: bool, unread: bool = False
    ) -> None:
        """Add one measurement.

        Args:
            batch_size: of the setting.
            step_sps: items per second of the step alone; None if it was not timed.
            rate: with loading; None if there is none.
            disturbed: whether others used the machine (`is_disturbed`).
            unread: whether there was no batch on which to time the step.
        """
        if unread:
            self._unread.add(batch_size)
        elif step_sps is not None and disturbed:
            self._disturbed.add(batch_size)
        elif step_sps is not None:
            self._step_sps[batch_size] = max(step_sps, self._step_sps.get(batch_size, 0.0))
        if rate is not None:
            self._low_sps[batch_size] = max(rate.low_sps, self._low_sps.get(batch_size, 0.0))
            self._sps[batch_size] = max(rate.sps, self._sps.get(batch_size, 0.0))

    def at(self, batch_size: int | None) -> float | None:
        """Return the items per second that no loader setting exceeds at a batch size; None if that is not known.

        The result is never below a measured rate: if a rate exceeds that of the step alone within noise, it is the better estimate.
        """
        if self.why_not(batch_size) is not None:
            return None
        return max(self._step_sps[batch_size], self._sps.get(batch_size, 0.0))

    def why_not(self, batch_size: int | None) -> str | None:
        """Return why the ceiling at a batch size is not known; None if it is known."""
        step_sps, sps = self._step_sps.get(batch_size), self._sps.get(batch_size, 0.0)
        if step_sps is None:
            return DISTURBED if batch_size in self._disturbed else UNREAD if batch_size in self._unread else NOT_TIMED
        if self._low_sps.get(batch_size, 0.0) > step_sps or sps > IMPOSSIBLE_FRACTION * step_sps:
            return f"the step alone was measured at {step_sps:,.0f}/s, less than training with loading ({sps:,.0f}/s), so something slowed it down"
        return None

    @property
    def timed(self) -> set[int | None]:
        """Batch sizes at which the step alone was timed without a disturbance, even if some setting trained faster."""
        return set(self._step_sps)

    def known(self) -> dict[int | None, float]:
        """Return batch size -> items per second for the ceilings that are known."""
        known = {size: self.at(size) for size in self.timed}
        return {size: sps for size, sps in known.items() if sps is not None}
