"""`CpuTime`: the CPU time of an item, and what handing its batch over from a worker adds. Imports NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

BATCH_S = 0.001
"""CPU seconds for handing a batch over, in worker and training process together, as long as nothing shows them. They were 3 ms for the
rows of `table`, on two CPUs."""
_LEAST_FRACTION = 0.05
"""An item itself takes at least this share of the CPU time that was measured."""


def ceiling_at(ceilings: Mapping[int, float], batch_size: Array) -> Array:
    """Return items per second of the training step alone at each batch size; infinite if it is known at none.

    Args:
        ceilings: batch size (0 for none) -> items per second of the step alone.
        batch_size: if the rate is not known at one of them, that of the nearest known one is taken.
    """
    if not ceilings:
        return np.full(np.shape(batch_size), np.inf)
    known = np.array(sorted(ceilings), dtype=float)
    rates = np.array([ceilings[int(size)] for size in known])
    return np.asarray(rates[np.abs(known[None, :] - np.asarray(batch_size)[:, None]).argmin(axis=1)])


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuSeen:
    """The CPU time of one trial."""

    num_workers: int
    batch_size: int
    """0 if it is not known."""
    cpu_item_s: float
    """CPU seconds of training process and workers per item."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuTime:
    """The CPU time of training process and workers, for an item: `item_s + step_cpus * x + batch_s / batch size`, where the step alone takes x seconds per item."""

    item_s: float
    """CPU seconds for loading an item, whoever loads it, and for what `step_cpus` does not say of training it."""
    batch_s: float = 0.0
    """CPU seconds for handing a batch over from a worker; also whatever else is done once per batch."""
    step_cpus: float = 0.0
    """CPUs that the training step alone keeps busy; 0 if it is not known, and then the step is part of `item_s`."""

    def of_item(self, batch_size: Array, step_s: Array) -> Array:
        """Return the CPU seconds of an item loaded by a worker, with the shape of the arguments.

        Args:
            batch_size: 0 if it is not known.
            step_s: seconds of the training step alone per item.
        """
        sizes = np.asarray(batch_size, dtype=float)
        return np.asarray(self.item_s + self.step_cpus * np.asarray(step_s) + self.batch_s / np.where(sizes > 0, sizes, np.inf))

    @classmethod
    def fit(cls, trials: Sequence[CpuSeen], ceilings: Mapping[int, float], step_cpus: float = 0.0) -> CpuTime | None:
        """Return what explains the CPU times of some trials; None if there are none.

        The CPU time of the step alone is taken off first. Of the rest, an item takes item_s + batch_s / batch_size with workers, and
        item_s without them. But threads of the step that spin while a batch is loaded count as CPU time, so a trial without workers is
        only an upper limit of item_s, unless it is all that is known.
        With workers at one batch size only, that limit tells the two apart; where it is no limit, BATCH_S does.

        Args:
            trials: finished ones.
            ceilings: as in `ceiling_at`.
            step_cpus: CPUs that the training step alone keeps busy; 0 if it is not known.
        """
        seen = _without_step(trials, ceilings, step_cpus)
        alone_s = [each.cpu_item_s for each in seen if each.num_workers == 0]
        helped = [each for each in seen if each.num_workers > 0]
        sizes = np.array([each.batch_size for each in helped], dtype=float)
        times = np.array([each.cpu_item_s for each in helped])
        if not helped:
            return cls(item_s=float(np.median(alone_s)), batch_s=BATCH_S, step_cpus=step_cpus) if alone_s else None
        if not sizes.all():
            return cls(item_s=float(np.median(times)), step_cpus=step_cpus)
        most_s = min(alone_s, default=np.inf)
        if len(set(sizes)) > 1:  # least squares of the relative error
            (item_s, batch_s), *_ = np.linalg.lstsq(np.stack([1 / times, 1 / sizes / times], axis=1), np.ones(len(times)), rcond=None)
        elif most_s < np.median(times):
            item_s, batch_s = most_s, float(np.median((times - most_s) * sizes))
        else:
            batch_s = min(BATCH_S, float(np.median(times * sizes)) / 2)
            item_s = float(np.median(times - batch_s / sizes))
        least_s = _LEAST_FRACTION * times.min()
        if batch_s < 0 or not least_s <= item_s <= most_s:
            item_s = float(np.median(times)) if batch_s < 0 else item_s
            item_s = float(min(max(item_s, least_s), most_s))
            batch_s = max(float(np.median((times - item_s) * sizes)), 0.0)
        return cls(item_s=float(item_s), batch_s=float(batch_s), step_cpus=step_cpus)


def _without_step(trials: Sequence[CpuSeen], ceilings: Mapping[int, float], step_cpus: float) -> list[CpuSeen]:
    """Return the trials without the CPU time of the step alone, but with _LEAST_FRACTION of their CPU time at least."""
    step_s = 1 / ceiling_at(ceilings, np.array([each.batch_size for each in trials], dtype=float))
    return [
        replace(each, cpu_item_s=max(each.cpu_item_s - step_cpus * float(alone_s), _LEAST_FRACTION * each.cpu_item_s))
        for each, alone_s in zip(trials, step_s, strict=True)
    ]
