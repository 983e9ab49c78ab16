"""`FollowingPolicy`: the policy of a rank other than rank 0, which does what rank 0 decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from feedrate.trainables.deciding.decision import Decision
from feedrate.trainables.deciding.policy import Policy, workers
from feedrate.trainables.ranks.rank_meeting import RankMeeting


class FollowingPolicy(Policy):
    """Notes each step for rank 0, and changes to the number of workers that rank 0 has decided on.

    If loading fails with that number here, or this rank's loader may not be changed, this rank goes back to the user's own number at once, and
    makes rank 0 do the same for all ranks.

    Args:
        own: the user's own number of workers in each rank.
        meeting: how the ranks find each other.
        options: of `Policy`.
    """

    follows = True
    counts_groups = False

    def __init__(self, own: int, *, meeting: RankMeeting, **options: Any) -> None:
        self._meeting, self.num_ranks = meeting, meeting.rank.world_size
        super().__init__(own, **options)
        self._complaint = None if self.leave is None else ("leave", self.leave)

    def observe(self, num_workers: int, wait_s: float, step_s: float, num_ready: Callable[[], int], num: int = 1) -> list[Decision]:
        """Note one batch that this rank has finished, and take over what rank 0 has decided."""
        if self._began_s is None:
            self._began_s = self._clock() - wait_s - step_s
        self.num_batches += 1
        self.wait_s += wait_s
        self.step_s += step_s
        if (board := self._meeting.board()) is not None:
            board.note(self.num_batches, wait_s, num_workers)
            if self._complaint is not None:
                board.complain(*self._complaint)
            if self.leave is None:
                self.target, self.best = board.asked()
        return []

    def cannot_start(self, num_workers: int, why: str) -> Decision:
        """Go back to the user's own setting for good, because this rank has no room for another one."""
        return self._end("limit", f"{workers(num_workers)}: {why}", num_workers)

    def _end(self, kind: str, reason: str, num_workers: int) -> Decision:
        self._complaint = kind, reason
        return super()._end(kind, f"rank {self._meeting.rank.number}: {reason}", num_workers)
