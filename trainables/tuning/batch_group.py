"""`BatchGroup`: batches of a training that its policy has not counted yet."""

from __future__ import annotations


class BatchGroup:
    """Consecutive batches of one setting.

    Args:
        num_workers: the setting.
    """

    __slots__ = ("num", "num_workers", "step_s", "until_s", "wait_s")

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.num = 0
        self.wait_s = self.step_s = 0.0
        self.until_s = 0.0
        """Until then (`time.perf_counter`), further batches of the setting need only be added. Between two training steps, which leave the CPU's caches
        to others, each function that is called costs a microsecond."""
