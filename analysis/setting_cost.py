"""`SettingCost`: what a setting takes from the machine. Of settings that are equally fast, the cheapest is the answer. Imports nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MUCH_MORE_CPU = 1.25
"""A setting that takes this many times the CPU time of another one, per item, is the dearer one, however many workers it has. Measurements of one
setting differ by 5 to 16 % in their CPU time. So it is compared only where there were rounds, as a median of three or more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingCost:
    """The cost of a setting: CPU time first, if it is very different, then the number of workers, then batches in flight, then memory."""

    num_workers: int = 0
    prefetch_factor: int = 0
    memory_bytes: float = 0.0
    cpu_item_s: float | None = None
    """CPU seconds that training process and workers used per item, threads that spin included; None if not measured, and then CPU time is not compared."""

    @property
    def order(self) -> tuple[int, int, float]:
        """Everything but CPU time, to sort by."""
        return (self.num_workers, self.prefetch_factor, self.memory_bytes)

    def takes_much_more_cpu(self, other: SettingCost) -> bool:
        """Return whether this setting takes MUCH_MORE_CPU times the CPU time of another one, or more."""
        if self.cpu_item_s is None or other.cpu_item_s is None:
            return False
        return self.cpu_item_s >= MUCH_MORE_CPU * other.cpu_item_s

    def is_below(self, other: SettingCost) -> bool:
        """Return whether this setting is cheaper than another one."""
        if self.takes_much_more_cpu(other):
            return False
        return other.takes_much_more_cpu(self) or self.order < other.order


def cheapest(costs: Sequence[SettingCost]) -> int:
    """Return the index of the cheapest: those that take much more CPU time than another one are left out, and the first of the rest, in order, is taken.

    Raises:
        ValueError: there are no costs.
    """
    frugal = [index for index, each in enumerate(costs) if not any(each.takes_much_more_cpu(other) for other in costs)]
    return min(frugal, key=lambda index: costs[index].order)
