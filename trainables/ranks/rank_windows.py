"""`RankWindows`: the windows of a measurement as one of its ranks saw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from feedrate.trainables.ranks.world_window import WorldWindow


@dataclass(frozen=True, kw_only=True, slots=True)
class RankWindows:
    """One rank. The tuples have one value for each window."""

    rank: int
    window_wait_s: tuple[float, ...] = ()
    """Time in next(loader)."""
    window_step_s: tuple[float, ...] = ()
    """All other time, in which the rank also waits for the others."""
    window_num_items: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal object."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> RankWindows:
        """Return the windows in an object of `to_json`."""
        named: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
        return cls(**named)


def with_window(ranks: Sequence[RankWindows], window: WorldWindow) -> tuple[RankWindows, ...]:
    """Return the ranks with one more window; no ranks yet are as many as the window has."""
    known = ranks or [RankWindows(rank=number) for number in range(len(window.rank_items))]
    return tuple(
        RankWindows(
            rank=each.rank,
            window_wait_s=(*each.window_wait_s, window.rank_wait_s[each.rank]),
            window_step_s=(*each.window_step_s, window.rank_step_s[each.rank]),
            window_num_items=(*each.window_num_items, window.rank_items[each.rank]),
        )
        for each in known
    )
