"""`WorldWindow`: one window of all ranks, from a barrier at one step to a barrier at another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from feedrate.trainables.ranks.mark import Mark


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldWindow:
    """What all ranks did between two steps.

    It begins when the last rank has finished the first step and ends when the last rank has finished the other one, as two barriers
    would. So a rank that is behind makes the window longer for all of them.
    """

    duration_s: float
    num_batches: int
    """Of each rank."""
    num_items: int
    """Of all ranks together."""
    produced_batches: int
    """Batches that the loader finished, on the rank where it finished fewest: no rank can train more steps than that."""
    wait_s: float
    """Time in next(loader), on the rank with most of it."""
    rank_wait_s: tuple[float, ...]
    """The same for each rank."""
    rank_step_s: tuple[float, ...]
    """Time of each rank outside of next(loader), in which it also waits for the others."""
    rank_items: tuple[int, ...]

    @classmethod
    def between(cls, begins: Sequence[Mark], ends: Sequence[Mark], cycle: int) -> WorldWindow:
        """Return the window between the marks of all ranks at one step and at a later one.

        Args:
            begins: one mark for each rank, all with the same number.
            ends: the same ranks later, in the same order.
            cycle: batches in a production cycle. If a rank waits at both ends of whole cycles, it consumed what was produced,
                except batches of later cycles that were ready.
        """
        num = ends[0].number - begins[0].number
        duration_s = max(each.time_s for each in ends) - max(each.time_s for each in begins)
        waits = tuple(min(end.wait_s - begin.wait_s, duration_s) for begin, end in zip(begins, ends, strict=True))
        made = []
        for begin, end in zip(begins, ends, strict=True):
            waits_at_both = begin.is_waiting and end.is_waiting and num % cycle == 0
            more = end.made_ahead - begin.made_ahead if waits_at_both else end.made - begin.made
            made.append(max(num + more, 0))
        items = tuple(end.items - begin.items for begin, end in zip(begins, ends, strict=True))
        return cls(
            duration_s=duration_s,
            num_batches=num,
            num_items=sum(items),
            produced_batches=min(made),
            wait_s=max(waits),
            rank_wait_s=waits,
            rank_step_s=tuple(duration_s - each for each in waits),
            rank_items=items,
        )
