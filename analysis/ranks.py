"""Which rank of a training with several waits most for its loader, and whether it is always the same one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PERSISTENT_FRACTION = 0.8
"""A rank counts as the slow one if it waits longest for its batches in at least this share of the windows."""
APART_FRACTION = 0.05
"""Ranks whose shares of time waiting differ by less wait equally long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankWaits:
    """The share of time that each rank waits for its loader (0..1), and the rank that waits most."""

    fractions: tuple[float, ...]
    """By rank."""
    slowest: int
    """The rank with the largest share."""
    slowest_in: int
    """Number of windows in which this rank waits longest."""
    num_windows: int
    unit: str = "windows"
    """What is counted: windows of a trial, or steps of a training that is tuned."""

    @property
    def is_persistent(self) -> bool:
        """Whether it is the same rank in nearly every window, which says that its host or its part of the data is slow."""
        return self.slowest_in >= PERSISTENT_FRACTION * self.num_windows

    @property
    def sentence(self) -> str:
        """What people should know about the ranks, as one line."""
        shares = ", ".join(f"rank {number} {fraction:.0%}" for number, fraction in enumerate(self.fractions))
        if max(self.fractions) - min(self.fractions) < APART_FRACTION:
            return f"{len(self.fractions)} ranks wait for data about equally long: {shares}"
        where = f"in {self.slowest_in} of {self.num_windows} {self.unit}"
        if self.is_persistent:
            return f"rank {self.slowest} waits most for data, {where}: {shares}. Look at its part of the data, and at its CPUs"
        often = f"rank {self.slowest} most often, {where}"
        return f"which rank waits longest for data changes from {self.unit[:-1]} to {self.unit[:-1]} ({often}): {shares}. Loading is too slow on all of them"


def rank_waits(record: Mapping[str, Any]) -> RankWaits | None:
    """Return which rank of a trial waits most; None for a training in one process, and for a record without usable ranks.

    Args:
        record: of `trials.jsonl`, or the columns of a measurement.
    """
    ranks, durations_s = record.get("ranks"), record.get("window_duration_s")
    if not ranks or not durations_s:
        return None
    waits = [each.get("window_wait_s") for each in ranks]
    if any(not _are_times(each, len(durations_s)) for each in waits):
        return None
    total_s = sum(durations_s)
    fractions = tuple(sum(each) / total_s for each in waits)
    slowest = max(range(len(waits)), key=fractions.__getitem__)
    slowest_in = sum(all(each[number] <= waits[slowest][number] for each in waits) for number in range(len(durations_s)))
    return RankWaits(fractions=fractions, slowest=slowest, slowest_in=slowest_in, num_windows=len(durations_s))


def num_ranks_of_training(summary: Mapping[str, Any]) -> int:
    """Return how many ranks a training with `feedrate train` had, as far as its rates are those of all; `summary` is that of train.json."""
    facts = summary.get("ranks")
    num = facts.get("world_size") if isinstance(facts, Mapping) else None
    return num if isinstance(num, int) and num > 0 else 1


def waits_of_training(summary: Mapping[str, Any]) -> RankWaits | None:
    """Return which rank of a training with `feedrate train` waits most; None for a training in one process, or if it is not known.

    Args:
        summary: of train.json.
    """
    facts = summary.get("ranks")
    if not isinstance(facts, Mapping):
        return None
    fractions, counts = facts.get("wait_fractions"), [facts.get(name) for name in ("slowest", "slowest_in", "num_steps")]
    if not isinstance(fractions, list) or not fractions or not _are_times(fractions, len(fractions)) or not _are_times(counts, 3):
        return None
    slowest, slowest_in, num_steps = (int(each) for each in counts if each is not None)
    if slowest >= len(fractions):
        return None
    return RankWaits(fractions=tuple(fractions), slowest=slowest, slowest_in=slowest_in, num_windows=num_steps, unit="steps")


def _are_times(values: Any, num: int) -> bool:
    """Whether a value is a list of so many numbers of seconds."""
    return isinstance(values, Sequence) and len(values) == num and all(isinstance(each, (int, float)) and each >= 0 for each in values)
