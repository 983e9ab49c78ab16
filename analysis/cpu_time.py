"""`CpuTime`: the CPU time of an item, and what handing its batch over from a worker adds. Imports NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BATCH_S = 0.001
"""CPU seconds for handing a batch over, in worker and training process together, as long as nothing shows them. They were 3 ms for the
rows of `table`, on two CPUs."""
_LEAST_FRACTION = 0.05
"""An item itself takes at least this share of the CPU time that was measured."""


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
    """The CPU time of training process and workers."""

    item_s: float
    """CPU seconds for loading and training an item, whoever loads it."""
    batch_s: float = 0.0
    """CPU seconds for handing a batch over from a worker; also whatever else is done once per batch."""

    @property
    def batch_items(self) -> float:
        """How many items could be loaded and trained in the CPU time that handing a batch over takes."""
        return self.batch_s / self.item_s

    @classmethod
    def fit(cls, seen: Sequence[CpuSeen]) -> CpuTime | None:
        """Return what explains the CPU times of some trials; None if there are none.

        With workers, an item takes item_s + batch_s / batch_size, and without them item_s. But threads of the step that spin while a
        batch is loaded count as CPU time, so a trial without workers is only an upper limit of item_s, unless it is all that is known.
        With workers at one batch size only, that limit tells the two apart; where it is no limit, BATCH_S does.
        """
        alone_s = [each.cpu_item_s for each in seen if each.num_workers == 0]
        helped = [each for each in seen if each.num_workers > 0]
        sizes = np.array([each.batch_size for each in helped], dtype=float)
        times = np.array([each.cpu_item_s for each in helped])
        if not helped:
            return cls(item_s=float(np.median(alone_s)), batch_s=BATCH_S) if alone_s else None
        if not sizes.all():
            return cls(item_s=float(np.median(times)))
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
        return cls(item_s=float(item_s), batch_s=float(batch_s))
