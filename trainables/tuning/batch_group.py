"""`BatchGroup`: batches of a training that its policy has not counted yet."""

from __future__ import annotations

from typing import NamedTuple


class BatchGroup(NamedTuple):
    """Consecutive batches of one setting. A named tuple, because one is made for each batch."""

    num_workers: int
    num: int = 0
    wait_s: float = 0.0
    step_s: float = 0.0

    def plus(self, num_workers: int, wait_s: float, step_s: float) -> BatchGroup:
        """Return the group with one more batch."""
        return BatchGroup(num_workers, self.num + 1, self.wait_s + wait_s, self.step_s + step_s)
