"""`IdleWorkers`: numbers of workers of which some deliver nothing, as a trial has shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class IdleWorkers:
    """A trial in which some workers delivered nothing, for example because the dataset has fewer shards than workers: what it says about settings with more workers."""

    working: int
    """Number of workers that delivered something."""
    asked: int
    """Number of workers that the trial had."""
    why: str
    """Why the others had nothing, as a clause."""
    is_sure: bool
    """Whether no larger number can make more workers work. Otherwise a dataset that divides its data in another way might do so."""

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> IdleWorkers | None:
        """Return what the columns of a trial say; None if all of its workers delivered something, or that is not known."""
        working, asked = columns.get("effective_num_workers"), columns.get("num_workers")
        if working is None or not asked or working >= asked:
            return None
        if columns.get("num_shards") == working:
            why, is_sure = f"the stream has {working} shard{'s' * (working > 1)}", True
        elif _num_epoch_batches(columns) == working:
            why, is_sure = f"an epoch has {working} batch{'es' * (working > 1)}", True
        else:
            why, is_sure = f"the other{'s' * (asked - working > 1)} got no data", working == 1
        return cls(working, asked, why, is_sure)

    def remark(self) -> str:
        """Return a sentence about the trial."""
        return f"{self.asked} workers were asked for, {self.working} worked ({self.why}): more workers than that cannot help"

    def has_idle(self, num_workers: int) -> bool:
        """Return whether some of so many workers would deliver nothing."""
        return num_workers > self.working and (self.is_sure or num_workers <= self.asked)

    def implies(self, other: IdleWorkers) -> bool:
        """Return whether `other` says nothing that this does not say."""
        return self.working <= other.working and (self.is_sure or (not other.is_sure and other.asked <= self.asked))

    def in_words(self) -> str:
        """Return which settings have idle workers."""
        if self.is_sure:
            return f"settings with more than {self.working} worker{'s' * (self.working > 1)}"
        least = self.working + 1
        return f"settings with {least} to {self.asked} workers" if least < self.asked else f"settings with {self.asked} workers"


def _num_epoch_batches(columns: Mapping[str, Any]) -> int | None:
    items, batches = (sum(columns.get(name) or ()) for name in ("window_num_items", "window_num_batches"))
    epoch_samples: int | None = columns.get("epoch_samples")
    if not epoch_samples or not items or not batches:
        return None
    return math.ceil(epoch_samples * batches / items - 1e-9)
