"""`LeadingPolicy`: rank 0's policy in a training with several ranks, which decides for all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from feedrate.trainables.deciding.decision import Decision
from feedrate.trainables.deciding.policy import Policy
from feedrate.trainables.ranks.rank_board import NUM_KEPT, RankBoard
from feedrate.trainables.ranks.rank_meeting import RankMeeting

JOIN_S = 60.0
"""If a rank has not begun to train by then, the number of workers stays."""


class LeadingPolicy(Policy):
    """Decides as `Policy` does, by the rank that waits longest for its batch in each step.

    Ranks that exchange gradients end a step together, so a step takes as long as on the rank that waits longest for its batch, and the
    rest of that time is training. Batches count for a setting once every rank's batch was loaded with it. No rank waits for
    another here: what each one loads is the same with every number of workers, whenever it changes.

    Args:
        own: the user's own number of workers in each rank.
        meeting: how the ranks find each other.
        options: of `Policy`.
    """

    counts_groups = False
    """The steps of all ranks are compared one by one."""

    def __init__(self, own: int, *, meeting: RankMeeting, **options: Any) -> None:
        self._meeting = meeting
        self.num_ranks = meeting.rank.world_size
        self._waits_s, self._num_slowest = [0.0] * self.num_ranks, [0] * self.num_ranks
        """By rank: how long it has waited, and in how many steps it was the one that waited longest."""
        self._counted_s = 0.0
        """The time of these steps."""
        self._first_s: float | None = None
        self._num_taken = 0
        self._waiting: deque[_Step] = deque()
        self._is_apart = False
        super().__init__(own, **options)

    def observe(self, num_workers: int, wait_s: float, step_s: float, num_ready: Callable[[], int], num: int = 1) -> list[Decision]:
        """Count one batch that rank 0 has finished, as soon as the other ranks have noted theirs."""
        self._first_s = self._clock() if self._first_s is None else self._first_s
        before = len(self.decisions)
        self._num_taken += 1
        board = self._meeting.board()
        is_together = board is not None and board.are_all_here() and not self._is_apart
        if self.leave is None and (why := self._why_alone(is_together=is_together)) is not None:
            self.leave_alone(why)
        if board is None or not is_together:
            super().observe(num_workers, wait_s, step_s, num_ready)
            self._sprint.interrupt()
        else:
            self._meeting.close()
            board.note(self._num_taken, wait_s, num_workers)
            self._waiting.append(_Step(number=self._num_taken, num_workers=num_workers, wait_s=wait_s, step_s=step_s))
            self._listen(board)
            self._count_noted(board, num_ready)
        if board is not None:
            board.ask(self.target, self.best)
        return self.decisions[before:]

    def interrupted(self) -> None:
        """Note that an epoch ended or the training did something else: that time belongs to no window."""
        for each in self._waiting:
            super().observe(each.num_workers, each.wait_s, each.step_s, lambda: 0)
        self._waiting.clear()
        super().interrupted()

    def rank_facts(self) -> dict[str, Any] | None:
        """Return the number of ranks, each rank's share of time waiting, the rank that waits most, and in how many steps it waited longest; only the first if nothing else is known."""
        if not self._counted_s:
            return {"world_size": self.num_ranks}
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
            return f"not all of the {self.num_ranks} ranks have begun to train within a minute, so the number of workers stays for the whole training"
        if self._is_apart:
            return f"the ranks are more than {NUM_KEPT} steps apart, so they do not wait for each other; the number of workers stays for the whole training"
        return None

    def _listen(self, board: RankBoard) -> None:
        """Go back to the user's own setting if another rank asks for it."""
        if self.leave is None and (complaint := board.complaint()) is not None:
            number, kind, reason = complaint
            self._end(kind, f"rank {number}: {reason}", self.target)

    def _count_noted(self, board: RankBoard, num_ready: Callable[[], int]) -> None:
        """Count the steps that all ranks have noted, in their order."""
        while self._waiting:
            step = self._waiting[0]
            notes = [board.noted(number, step.number) for number in range(self.num_ranks)]
            found = [each for each in notes if each is not None]
            if len(found) < self.num_ranks:
                self._is_apart = len(self._waiting) > NUM_KEPT
                if self._is_apart:
                    self.interrupted()
                return
            self._waiting.popleft()
            taken_s = step.wait_s + step.step_s
            wait_s = min(max(each.wait_s for each in found), taken_s)
            loaded_by = next((each.num_workers for each in found if each.num_workers != self.target), self.target)
            self._count([each.wait_s for each in found], taken_s)
            super().observe(loaded_by, wait_s, taken_s - wait_s, num_ready)

    def _count(self, waits_s: list[float], taken_s: float) -> None:
        for number, each in enumerate(waits_s):
            self._waits_s[number] += each
        self._num_slowest[waits_s.index(max(waits_s))] += 1
        self._counted_s += taken_s


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """A step of rank 0 that other ranks have not noted yet."""

    number: int
    num_workers: int
    wait_s: float
    step_s: float
