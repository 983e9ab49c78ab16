"""`LeadingPolicy`: rank 0's policy in a training with several ranks, which decides for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from feedrate.trainables.deciding.decision import Decision
from feedrate.trainables.deciding.policy import Policy
from feedrate.trainables.ranks.rank_board import NUM_KEPT
from feedrate.trainables.ranks.rank_meeting import RankMeeting

JOIN_S = 60.0
"""If a rank has not begun to train by then, the number of workers stays."""


class LeadingPolicy(Policy):
    """Decides as `Policy` does, on the time that the slowest rank waits.

    Ranks that exchange gradients end a step together, so a step takes as long as on the rank that waits longest for its batch, and the
    rest of that time is training. Batches count for a setting once every rank's batch was loaded with it. No rank waits for
    another here: what each one loads is the same with every number of workers, whenever it changes.

    Args:
        own: the user's own number of workers in each rank.
        meeting: how the ranks find each other.
        options: of `Policy`.
    """

    def __init__(self, own: int, *, meeting: RankMeeting, **options: Any) -> None:
        self._meeting = meeting
        self.num_ranks = meeting.rank.world_size
        self._waits_s, self._num_slowest = [0.0] * self.num_ranks, [0] * self.num_ranks
        """By rank: how long it has waited, and in how many steps it was the one that waited longest."""
        self._counted_s = 0.0
        """The time of these steps."""
        self._first_s: float | None = None
        self._num_missing = 0
        super().__init__(own, **options)

    def observe(self, num_workers: int, wait_s: float, step_s: float, num_ready: Callable[[], int]) -> list[Decision]:
        """Count one batch that rank 0 has finished, with what the other ranks noted of theirs."""
        self._first_s = self._clock() if self._first_s is None else self._first_s
        before = len(self.decisions)
        board = self._meeting.board()
        is_together = board is not None and board.are_all_here()
        if self.leave is None and (why := self._why_alone(is_together=is_together)) is not None:
            self.leave_alone(why)
        if board is not None and is_together:
            self._meeting.close()
            step = self.num_batches + 1
            board.note(step, wait_s, num_workers)
            self._listen()
            notes = [board.noted(number, step) for number in range(self.num_ranks)]
            self._num_missing = self._num_missing + 1 if None in notes else 0
            is_together = None not in notes
            found = [each for each in notes if each is not None]
            taken_s, wait_s = wait_s + step_s, max(each.wait_s for each in found)
            wait_s = min(wait_s, taken_s)
            step_s = taken_s - wait_s
            num_workers = next((each.num_workers for each in found if each.num_workers != self.target), self.target)
            if is_together:
                self._count([each.wait_s for each in found], taken_s)
        super().observe(num_workers, wait_s, step_s, num_ready)
        if not is_together:
            self._sprint.interrupt()
        self._publish()
        return self.decisions[before:]

    def rank_facts(self) -> dict[str, Any] | None:
        """Return each rank's share of time waiting, the rank that waits most, and in how many steps it was the one that waited longest."""
        if not self._counted_s:
            return None
        slowest = self._waits_s.index(max(self._waits_s))
        return {
            "world_size": self.num_ranks,
            "wait_fractions": [each / self._counted_s for each in self._waits_s],
            "slowest": slowest,
            "slowest_in": self._num_slowest[slowest],
            "num_steps": sum(self._num_slowest),
        }

    def _why_alone(self, *, is_together: bool) -> str | None:
        """Return why the number of workers must stay, as a sentence; None if it need not."""
        assert self._first_s is not None
        if self._meeting.why_none is not None:
            return self._meeting.why_none
        if not is_together and self._clock() - self._first_s > JOIN_S:
            return f"not all of the {self.num_ranks} ranks have begun to train on a loader that feedrate can tune, so the number of workers stays"
        if self._num_missing > NUM_KEPT:
            return f"the ranks are more than {NUM_KEPT} steps apart, so they do not wait for each other, and the number of workers stays"
        return None

    def _listen(self) -> None:
        """Go back to the user's own setting if another rank asks for it."""
        board = self._meeting.board()
        if self.leave is None and board is not None and (complaint := board.complaint()) is not None:
            number, kind, reason = complaint
            self._end(kind, f"rank {number}: {reason}", self.target)

    def _count(self, waits_s: list[float], taken_s: float) -> None:
        for number, each in enumerate(waits_s):
            self._waits_s[number] += each
        self._num_slowest[waits_s.index(max(waits_s))] += 1
        self._counted_s += taken_s

    def _publish(self) -> None:
        if (board := self._meeting.board()) is not None:
            board.ask(self.target, self.best)
