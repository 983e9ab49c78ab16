"""`Window`: a stretch of whole production cycles of one setting, timed while the training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Consecutive batches of one setting."""

    num_workers: int
    num_batches: int
    wait_s: float
    """Time in which the training waited for these batches."""
    step_s: float
    """Time in which it trained on them."""
    is_cut: bool = False
    """Whether the window ended early, because the setting is far slower than the best one."""

    @property
    def duration_s(self) -> float:
        """The sum of waiting and training."""
        return self.wait_s + self.step_s

    @property
    def rate(self) -> float:
        """Batches per second."""
        return self.num_batches / self.duration_s


def joined(windows: Sequence[Window]) -> Window:
    """Return several windows of one setting as one."""
    return Window(
        num_workers=windows[-1].num_workers,
        num_batches=sum(each.num_batches for each in windows),
        wait_s=sum(each.wait_s for each in windows),
        step_s=sum(each.step_s for each in windows),
    )


def wait_fraction(windows: Sequence[Window]) -> float:
    """Return the share of the time in which the training waited (0..1)."""
    whole = joined(windows)
    return whole.wait_s / whole.duration_s
