"""`Lead`: rank 0's side of a measurement with several ranks. It decides, by step number, what all ranks do next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.ranks.mark import Mark
from feedrate.trainables.ranks.rank_link import RankGone, RankLink
from feedrate.trainables.ranks.world_window import WorldWindow

BLAME_S = 1.0
"""A rank waits this long before it reports a failure of its own: if another rank has ended, the launcher reports that first."""
CLOCK_ROUNDS = 8
"""How often rank 0 asks a rank on another host for its clock. The answer that comes back soonest counts: the other clock's reading is of some moment in between."""
MOST_AHEAD = 16
"""Steps by which rank 0 may be ahead of another rank, if the steps themselves do not keep the ranks together."""
ALLOWED_S, MOST_ALLOWED = 0.05, 8
"""Rank 0 allows as many steps at once as take this long, so that messages cost little time even if steps are short."""


class Lead:
    """Tells the other ranks every step before rank 0 takes it, so that all ranks take equally many and no collective waits for ever.

    The other ranks are allowed steps that rank 0 has not begun, so that they need not wait for rank 0 between two steps. Before rank 0
    does anything else than training, it takes the steps that the others were allowed (`is_ahead`).

    Args:
        links: to the other ranks: rank 1, 2, ... in this order. Those of rank 0's host come first.
        num_local: number of ranks on rank 0's host, itself included; None if all are.
    """

    def __init__(self, links: Sequence[RankLink], num_local: int | None = None) -> None:
        self._links = list(links)
        self.world_size = len(self._links) + 1
        self.num_local = self.world_size if num_local is None else num_local
        self._clocks_ahead_s = [0.0] * len(self._links)
        """By how much the clock of each other rank is ahead of this one's: hosts count from different moments."""
        self._allowed = self._taken = 0
        self._last_allowed = 0.0, 0
        """When `ahead` allowed steps last, and how many rank 0 had begun then."""
        self._is_loading = False
        """Whether the ranks train on batches of the loader now, and not on a cached one: after each such step, every other rank sends a mark."""
        self._marks: list[deque[Mark]] = [deque() for _ in self._links]
        """Of each other rank, from the beginning of the present window on."""
        self.pids = [self._answer(number, "pid") for number in range(len(self._links))][: self.num_local - 1]
        """The processes of the other ranks on this host."""

    def set_up(self, config: dict[str, Any], options: dict[str, Any], batch_path: str, *, has_batch: bool) -> None:
        """Let the other ranks prepare the step for a setting.

        Args:
            config: the setting, as JSON.
            options: of the measurement, as JSON.
            batch_path: file with rank 0's cached batch; if it does not exist, each rank reads a batch itself.
            has_batch: whether there is a cached batch at all.
        """
        self._allowed = self._taken = 0
        self._is_loading, self._last_allowed = False, (0.0, 0)
        for number in range(self.num_local - 1, len(self._links)):
            self._clocks_ahead_s[number] = self._clock_ahead_s(number)
        self._tell({"do": "set up", "config": config, "options": options, "batch_path": batch_path, "has_batch": has_batch})

    def led(self, step: Callable[[Any], Any]) -> LedStep:
        """Return a step on the cached batch that all ranks do together."""
        return LedStep(self, step)

    def load(self) -> None:
        """Let the other ranks make their loaders, and wait until they have."""
        self._tell({"do": "load"})
        for number in range(len(self._links)):
            self._answer(number, "loaded")

    def start(self) -> None:
        """Let the other ranks start their loaders and take the first step."""
        for marks in self._marks:
            marks.clear()
        self._allowed, self._taken, self._is_loading = 1, 0, True
        self._last_allowed = 0.0, 0
        self._tell({"do": "start"})

    def next(self) -> None:
        """Begin rank 0's next step."""
        if self._allowed == self._taken:
            self._allow(1)
        self._taken += 1

    def ahead(self) -> None:
        """Allow the other ranks steps after the one that rank 0 is about to do, unless they have some left."""
        if self._allowed > self._taken:
            return
        now_s, (since_s, since) = time.perf_counter(), self._last_allowed
        step_s = (now_s - since_s) / max(self._taken - since, 1)
        self._last_allowed = now_s, self._taken
        self._allow(min(max(int(ALLOWED_S / step_s), 1), MOST_ALLOWED))
        for number, link in enumerate(self._links):
            self._keep(number, self._of(number, link.pending))
            while self._is_loading and self._taken - self._latest(number) > MOST_AHEAD:
                self._listen(number)

    def is_ahead(self) -> bool:
        """Return whether the other ranks may take a step that rank 0 has not begun."""
        return self._allowed > self._taken

    def marks(self, step: int) -> list[Mark]:
        """Wait until all other ranks have finished a step of the window that is being timed, and return what each recorded at it."""
        found = []
        for number, marks in enumerate(self._marks):
            while self._latest(number) < step:
                self._listen(number)
            found.append(next(each for each in marks if each.number == step))
        return found

    def window(self, begin: Mark, end: Mark, cycle: int) -> WorldWindow:
        """Return the window of all ranks between two of rank 0's marks; the next window begins at the second one or later."""
        window = WorldWindow.between([begin, *self.marks(begin.number)], [end, *self.marks(end.number)], cycle)
        for marks in self._marks:
            while marks[0].number < end.number:
                marks.popleft()
        return window

    def items(self, step: int) -> int:
        """Wait until all other ranks have finished a step, and return the items that they had trained then."""
        return sum(each.items for each in self.marks(step))

    def num_asides(self) -> int:
        """Return how often the other ranks' scripts did something other than training."""
        return sum(marks[-1].num_asides for marks in self._marks if marks)

    def set_epoch_batches(self, num_batches: int) -> None:
        """Let the epochs of the other ranks end after this many batches."""
        self._tell({"do": "epochs", "num_batches": num_batches})

    def end(self) -> bool:
        """Let the other ranks end their loaders, and wait until they have; return whether nothing of the setting is left in them."""
        self._tell({"do": "end"})
        answers = [self._answer(number, "is_clean") for number in range(len(self._links))]
        return all(answers)

    def _clock_ahead_s(self, number: int) -> float:
        """Return by how much the clock of a rank is ahead, to within half of the time of a message and its answer (Cristian, 1989)."""
        found: list[tuple[float, float]] = []
        for _ in range(CLOCK_ROUNDS):
            asked_s = time.perf_counter()
            self._of(number, lambda: self._links[number].send({"do": "clock"}))
            theirs_s, answered_s = self._answer(number, "clock_s"), time.perf_counter()
            found.append((answered_s - asked_s, theirs_s - (asked_s + answered_s) / 2))
        return min(found)[1]

    def _tell(self, message: dict[str, Any]) -> None:
        for number, link in enumerate(self._links):
            self._of(number, lambda link=link: link.send(message))  # type: ignore[misc]

    def _allow(self, num: int) -> None:
        for number, link in enumerate(self._links):
            self._of(number, lambda link=link: link.allow(num))  # type: ignore[misc]
        self._allowed += num

    def _answer(self, number: int, name: str) -> Any:
        while True:
            message = self._of(number, self._links[number].receive)
            if isinstance(message, dict) and name in message:
                return message[name]
            self._keep(number, [message])

    def _latest(self, number: int) -> int:
        """Return the latest step that a rank has finished, as far as its marks have come."""
        return self._marks[number][-1].number if self._marks[number] else 0

    def _listen(self, number: int) -> None:
        self._keep(number, [self._of(number, self._links[number].receive)])

    def _keep(self, number: int, messages: list[Any]) -> None:
        marks = [Mark.of_list(each) for each in messages if isinstance(each, list)]
        self._marks[number] += [replace(each, time_s=each.time_s - self._clocks_ahead_s[number]) for each in marks]

    def _of(self, number: int, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except RankGone:
            message = f"rank {number + 1} ended in the middle of the measurement"
            raise TrialFailed(Failure(kind="trainer-killed", phase="measure", message=message)) from None


class LedStep:
    """A training step on the cached batch that the other ranks take, too.

    Args:
        lead: tells them.
        step: rank 0's own step.
    """

    def __init__(self, lead: Lead, step: Callable[[Any], Any]) -> None:
        self._lead, self._step = lead, step
        self._batch: Any = None

    @property
    def num_asides(self) -> int:
        """How often rank 0's script did something other than training."""
        return int(getattr(self._step, "num_asides", 0))

    def __call__(self, batch: Any) -> Any:
        self._batch = batch
        self._lead.next()
        self._lead.ahead()
        return self._step(batch)

    def catch_up(self) -> None:
        """Take the steps that the other ranks were allowed."""
        while self._lead.is_ahead():
            self._lead.next()
            self._step(self._batch)
