"""`Policy`: decides how many workers the loader of a running training has. Plain logic: it neither loads nor reads a clock of its own.

It observes first. Where the training waits, it compares other numbers of workers with the best one so far, in turn, and changes only
for a gain that is beyond doubt. Then it watches. The plan is a generator, which asks for one window after another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from itertools import cycle, takewhile
from typing import Any

from feedrate.analysis.estimate import steady_rate
from feedrate.trainables.deciding.budget import Budget
from feedrate.trainables.deciding.candidates import ENOUGH_FRACTION, Candidates
from feedrate.trainables.deciding.comparison import LOOKS, MEAN_PAIRS, WORTH, Comparison
from feedrate.trainables.deciding.course import Course
from feedrate.trainables.deciding.decision import Decision
from feedrate.trainables.deciding.sprint import Sprint
from feedrate.trainables.deciding.waiting_watch import GREAT_GROWTH, RELEASE, WaitingWatch
from feedrate.trainables.deciding.window import Window, joined, wait_fraction

MIN_WINDOWS, MAX_WINDOWS = 6, 12
PRECISE_FRACTION = 0.03
"""Observing ends with MIN_WINDOWS windows if the interval of the rate is this narrow, else with MAX_WINDOWS."""
STARVED_FRACTION, STARVED_WINDOWS = 0.5, 4
"""If the training waits for more than this share of its time, this many windows are enough: every further one costs more than it tells."""
SURE_LOG = math.log(1.5)
"""If the comparisons so far show together that the best setting is faster than the user's own by more than this factor, no further one confirms it."""
WARM_BATCHES = 4
"""The first steps of a training compile and warm up, and count for no window."""
ASIDE_S, ASIDE_FACTOR, USUAL_BATCHES = 0.5, 10.0, 16
"""A step that takes longer than ASIDE_S and ASIDE_FACTOR times the usual one includes something other than training."""
NEXT_LOOK_S = 600.0
LATEST = 12
"""Number of windows of a setting that are remembered."""
PER_VISIT = 2
"""Number of windows in each visit of a setting during a comparison: A, B B, A A, B B, ..."""

TRYING_SHARE = 0.7
"""Share of the budget for candidates. The rest is for confirming the best one, without which nothing shows that it is better."""
ADOPTED = ("faster", "faster, and with fewer workers", "as fast, with fewer workers")
"""What is said of a candidate that the training then keeps."""
DOUBTFUL = "not faster beyond doubt"
SPENT = "not known well enough when the time for trying was used up"

Plan = Generator[int, Window, None]
"""Yields the number of workers of the next window, and receives the window."""


class Policy:
    """The decisions of one training.

    With several ranks, rank 0 has a `LeadingPolicy` and the others a `FollowingPolicy`.

    Args:
        own: the user's own number of workers.
        cpus: CPUs that this process may use.
        most: the largest number of workers to try.
        prefetch_factor: batches that each worker loads ahead.
        budget: the time that may be lost.
        leave: why the setting must not be changed, as a sentence; None if it may be.
        clock: returns seconds.
        cpu_s: returns the CPU seconds that the training and its workers have used so far; None if nothing can tell.
    """

    num_ranks = 1
    follows = False
    """Whether rank 0 decides in the place of this policy."""
    counts_groups = True
    """Whether short batches may be counted together."""

    def __init__(
        self,
        own: int,
        *,
        cpus: int,
        most: int,
        prefetch_factor: int = 2,
        budget: Budget | None = None,
        leave: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[], float] | None = None,
    ) -> None:
        self.own = self.target = self.best = own
        """`target` is the number of workers that is asked for now, `best` the one that the training keeps."""
        self.cpus, self.most, self.prefetch_factor, self.leave = cpus, most, prefetch_factor, leave
        self.budget = budget or Budget()
        self.items_per_batch: float | None = None
        self.epoch_batches_left: int | None = None
        """Batches until the end of the epoch; None if it is not known."""
        self.num_batches, self.wait_s, self.step_s, self.aside_s = 0, 0.0, 0.0, 0.0
        """Batches so far, and the time in which the training waited, trained and did something else between two batches."""
        self.speedup: tuple[float, float, float] | None = None
        """Rate of `best` divided by that of `own`, with its 95 % interval, once it has been confirmed."""
        self.course = Course()
        """The rate and the waiting over time."""
        self.decisions: list[Decision] = []
        self.windows: dict[int, list[Window]] = {}
        """The latest windows of each setting, while the present search lasts."""
        self.first: dict[str, Any] | None = None
        """What was measured of the user's own setting before anything was changed; None before that."""
        self._began_s: float | None = None
        self._usual_step_s: float | None = None
        self._looked_again_s = -math.inf
        self._kept = own
        """The best setting when the present look began."""
        self._clock, self._cpu_s = clock, cpu_s
        self._used_cpus: float | None = None
        """How many CPUs the training and its workers used while it was observed; None if it is not known."""
        self._is_trying = False
        self._candidates = Candidates(own, cpus=cpus, most=most)
        self._gains: list[tuple[float, float]] | None = []
        """Of each change of this look: the logarithm of the gain, and half of its 95 % interval; None if the look did not begin with the user's own setting."""
        self._plan = self._course()
        self._sprint = self._sprint_for(next(self._plan))

    def observe(self, num_workers: int, wait_s: float, step_s: float, num_ready: Callable[[], int], num: int = 1) -> list[Decision]:
        """Count batches that the training has finished, usually one, and return the decisions that follow; usually none.

        Args:
            num_workers: the setting that loaded them.
            wait_s: how long the training waited for them.
            step_s: how long it trained on them.
            num_ready: returns how many batches of the present setting are finished and not yet taken.
            num: how many batches. If several, let them end a production cycle (`is_whole`), because windows are whole cycles.
        """
        if self._began_s is None:
            self._began_s = self._clock() - wait_s - step_s
        self.num_batches += num
        if self.epoch_batches_left:
            self.epoch_batches_left = max(self.epoch_batches_left - num, 0)
        sprint = self._sprint
        if self._is_aside(step_s, num):
            self.aside_s += step_s
            self.course.add(num_workers, 0.0, 0.0, step_s, self.elapsed, num)
            sprint.interrupt()
            return []
        self.wait_s += wait_s
        self.step_s += step_s
        self.course.add(num_workers, wait_s, step_s, 0.0, self.elapsed, num)
        if num_workers != sprint.num_workers:
            sprint.passed(wait_s, step_s, num)
            return []
        window = sprint.add(wait_s, step_s, num_ready, num)
        if window is None:
            return []
        before = len(self.decisions)
        self._received(window)
        return self.decisions[before:]

    def is_whole(self, num: int) -> bool:
        """Return whether so many further batches end a production cycle of the present setting."""
        return self._sprint.is_whole(num)

    def _is_aside(self, step_s: float, num: int) -> bool:
        """Whether steps were among the first, which compile and warm up, or included something else, such as a validation or a checkpoint."""
        usual_s, each_s = self._usual_step_s, step_s / num
        self._usual_step_s = each_s if usual_s is None else usual_s + (min(each_s, 2 * usual_s) - usual_s) / USUAL_BATCHES
        return self.num_batches <= WARM_BATCHES or (step_s > ASIDE_S and usual_s is not None and step_s > ASIDE_FACTOR * num * usual_s)

    def interrupted(self) -> None:
        """Note that an epoch ended or the training did something else: that time belongs to no window."""
        self._sprint.interrupt()

    def leave_alone(self, why: str) -> Decision:
        """Go back to the user's own setting for good, because changing it would change the training."""
        return self._end("leave", why, self.best)

    def failed(self, num_workers: int, why: str) -> Decision:
        """Go back to the user's own setting for good, because a worker of another setting failed."""
        reason = f"{why}; back to {workers(self.own)}, what was in flight is loaded again, and the number of workers stays"
        return self._end("failure", reason, num_workers)

    def limited(self, num_workers: int, why: str) -> Decision:
        """Go back to the user's own setting for good, because another one takes too much memory."""
        return self._end("limit", f"{why}; back to {workers(self.own)} for good", num_workers)

    def cannot_start(self, num_workers: int, why: str) -> Decision:
        """Go back to the best setting, because this one does not fit on this machine."""
        self._candidates.limit(num_workers - 1)
        self._candidates.tried(num_workers, adopted=False, than=self.best)
        self._is_trying = False
        decision = self._decide("reject", self.best, f"{workers(num_workers)}: {why}", num_workers=num_workers)
        self._plan = self._search_on()
        self._sprint = self._sprint_for(next(self._plan))
        return decision

    def elapsed(self) -> tuple[float, int]:
        """Return the seconds and the number of batches since the training took its first batch."""
        return self._clock() - self._began_s if self._began_s is not None else 0.0, self.num_batches

    def rank_facts(self) -> dict[str, Any] | None:
        """Return the number of ranks and how long each of them waited, as a JSON object; None for one process."""
        return None

    def fraction_waited(self) -> float:
        """Return the share of the whole training's time in which it waited (0..1)."""
        taken_s = self.wait_s + self.step_s
        return self.wait_s / taken_s if taken_s else 0.0

    def rate(self, num_workers: int) -> dict[str, Any] | None:
        """Return the rate of a setting in batches per second with its 95 % interval, and its share of waiting; None if not measured."""
        windows = self.windows.get(num_workers)
        if not windows:
            return None
        durations = [each.duration_s for each in windows]
        counts = [each.num_batches for each in windows]
        found = steady_rate(durations, counts, counts, counts, run_sd_fraction=0.0)
        return {
            "batches_per_s": found.sps,
            "ci95": [found.low_sps, found.high_sps],
            "wait_fraction": wait_fraction(windows),
            "num_windows": len(windows),
        }

    def _received(self, window: Window) -> None:
        known = self.windows.setdefault(window.num_workers, [])
        known.append(window)
        del known[:-LATEST]
        sprint = self._sprint
        if self._is_trying:
            best_batch_s = self._best_batch_s()
            assert best_batch_s is not None
            self.budget.lose(sprint.num_workers, sprint.total_s, sprint.num_batches, best_batch_s)
        sprint.total_s, sprint.num_batches = 0.0, 0
        target = self._plan.send(window)
        if target != sprint.num_workers:
            self._sprint = self._sprint_for(target)

    def _sprint_for(self, num_workers: int) -> Sprint:
        self.target = num_workers
        return Sprint(num_workers, self.prefetch_factor, self._best_batch_s() if self._is_trying else None)

    def _best_batch_s(self) -> float | None:
        """Return seconds per batch of the fastest setting that is known well enough."""
        means = [
            sum(each.duration_s for each in windows) / sum(each.num_batches for each in windows)
            for number, windows in self.windows.items()
            if number == self.best or len(windows) > PER_VISIT
        ]
        return min(means, default=None)

    def _course(self) -> Plan:
        yield from self._observe()
        if self.leave is not None:
            self._decide("leave", self.own, self.leave)
            yield from self._watch_for_good()
        yield from self._looks()

    def _looks(self) -> Plan:
        """Search once, and again whenever waiting has grown; the present setting has been observed."""
        while True:
            waits = wait_fraction(self.windows[self.best])
            self._candidates = Candidates(self.own, cpus=self.cpus, most=self.most, used_cpus=self._used_cpus)  # of this look
            self._gains = [] if self.best == self.own else None
            self._kept = self.best
            if waits < ENOUGH_FRACTION:
                reason = f"the training waits only {waits:.1%} of its time, so no loader can make it noticeably faster"
                self._decide("enough", self.best, reason, wait_fraction=waits)
            else:
                yield from self._search()
            yield from self._watch()

    def _search_on(self) -> Plan:
        """Continue the present search, and then the course, after a setting that could not be started."""
        yield from self._search()
        yield from self._watch()
        yield from self._looks()

    def _observe(self) -> Plan:
        """Measure the present setting as it is, until it is known."""
        yield self.best
        begin_s, begin_cpu_s = self.wait_s + self.step_s, self._cpu_s() if self._cpu_s is not None else None
        yield self.best
        while not self._is_known():
            yield self.best
        if self._cpu_s is not None and begin_cpu_s is not None:
            self._used_cpus = (self._cpu_s() - begin_cpu_s) / (self.wait_s + self.step_s - begin_s)
        found = self.rate(self.best)
        assert found is not None
        self.first = found if self.first is None else self.first
        waits = found["wait_fraction"]
        most = f"at most {1 / (1 - waits):.2f}x to gain" if waits < 1 else "no step was seen"
        reason = f"{workers(self.best)}: {self._words(found['batches_per_s'])}, waits {waits:.1%} of the time, {most}"
        self._decide("baseline", self.best, reason, **found)

    def _is_known(self) -> bool:
        """Whether the present setting has windows enough to look for a better one."""
        found = self.rate(self.best)
        if found is None:
            return False
        num, (low, high) = found["num_windows"], found["ci95"]
        is_starved = num >= STARVED_WINDOWS and found["wait_fraction"] > STARVED_FRACTION
        is_precise = num >= MIN_WINDOWS and high - low < 2 * PRECISE_FRACTION * found["batches_per_s"]
        return bool(is_starved or is_precise or num >= MAX_WINDOWS)

    def _search(self) -> Plan:
        """Try candidates until none is worth it, then confirm the best one against the user's own setting, unless it was the best one before."""
        while not self._is_spent(TRYING_SHARE):
            found = self._candidates.next(self.windows[self.best])
            if found is None:
                break
            candidate, why = found
            self._decide("try", candidate, f"trying {workers(candidate)}: {why}")
            yield from self._compare(candidate, cheaper=candidate < self.best)
        if self.best not in (self.own, self._kept):
            yield from self._confirm()
        known = self.rate(self.best)
        rate = f", {self._words(known['batches_per_s'])}, waits {known['wait_fraction']:.1%} of the time" if known else ""
        lost = f"; measuring lost {self.budget.lost_s:.1f} s"
        why = "; the time for trying is used up" if self._is_spent(TRYING_SHARE) else ""
        self._decide("settled", self.best, f"{workers(self.best)}{rate}{lost}{why}", lost_s=self.budget.lost_s, **(known or {}))

    def _compare(self, candidate: int, *, cheaper: bool) -> Plan:
        """Measure a candidate and the best setting in turn until one is better beyond doubt, and keep that."""
        best, comparison = self.best, Comparison(self.windows.values())
        turns = self._pairs(best, candidate, comparison)
        verdict = yield from self._judge(turns, comparison, cheaper=cheaper, share=TRYING_SHARE)
        adopted = verdict in ADOPTED
        (ratio, low, high), num = comparison.speedup(), len(comparison.differences)
        self._candidates.tried(candidate, adopted=adopted, than=best, ratio=ratio, before=joined(self.windows[best]))
        reason = f"{workers(candidate)}: {ratio:.2f}x as fast as {workers(best)} [{low:.2f}-{high:.2f}], in {num} pair{'s' * (num != 1)} of windows: {verdict}"
        if adopted:
            self.best = candidate
            if self._gains is not None:
                self._gains.append((math.log(ratio), math.log(high / ratio)))
        numbers = {"ratio": ratio, "ci95": [low, high], "num_pairs": num, "candidate": candidate, "than": best}
        self._decide("adopt" if adopted else "reject", self.best, reason, **numbers, lost_s=self.budget.lost_s)

    def _confirm(self) -> Plan:
        """Measure the best setting against the user's own; go back to the latter unless the gain is beyond doubt."""
        best, comparison = self.best, Comparison(self.windows.values())
        if (shown := self._shown()) is not None:
            self.speedup = ratio, low, high = shown
            reason = f"{workers(best)}: {self._than_own(ratio, low, high)} by the comparisons above together, which is confirmation enough"
            self._decide("confirm", best, reason, ratio=ratio, ci95=[low, high], num_pairs=0, candidate=best, than=self.own)
            return
        self._decide("confirm", best, f"measuring {workers(best)} against your own {self.own} in turn")
        turns = self._pairs(self.own, best, comparison)
        verdict = yield from self._judge(turns, comparison, cheaper=False, share=1.0)
        ratio, low, high = comparison.speedup()
        numbers = {"ratio": ratio, "ci95": [low, high], "num_pairs": len(comparison.differences), "candidate": best, "than": self.own}
        if verdict in (SPENT, DOUBTFUL) and ratio > math.exp(WORTH) and low > 1:
            # the comparison that adopted it was beyond doubt, so going back would more often be wrong than staying
            self._decide("confirm", best, f"{workers(best)}: {self._than_own(ratio, low, high)}: {verdict}, but likely, so {workers(best)} stay{'s' * (best == 1)}, not confirmed", **numbers)
            return
        if verdict == "faster":
            self.speedup = ratio, low, high
            self._decide("confirm", best, f"{workers(best)}: {self._than_own(ratio, low, high)}, confirmed", **numbers)
            return
        self.best, self.speedup = self.own, None
        reason = f"{workers(best)}: {self._than_own(ratio, low, high)}: {verdict}; back to yours"
        self._decide("back", self.own, reason, **numbers)

    def _shown(self) -> tuple[float, float, float] | None:
        """Return the gain of the best setting over the user's own, with its 95 % interval, if the comparisons of this look show together that it is large."""
        gain, half = sum(mean for mean, _ in self._gains or ()), math.hypot(*(half for _, half in self._gains or ()))
        return (math.exp(gain), math.exp(gain - half), math.exp(gain + half)) if gain - half > SURE_LOG else None

    def _pairs(self, first: int, second: int, comparison: Comparison) -> Plan:
        """Measure pairs of two settings endlessly: A, B B, A A, B B, ..., so that a steady drift cancels.

        Where the training waits for most of its time, the latest window of A is used as the first one: measuring another would cost more than it tells.
        """
        self._is_trying = True
        try:
            turns = cycle([first, second, second, first] if self.target == first else [second, first, first, second])
            latest = self.windows[first][-1:] if self.target == first else []
            windows = [each for each in latest if wait_fraction([each]) > STARVED_FRACTION]
            if windows:
                next(turns)
            while True:
                windows.append((yield next(turns)))
                if len(windows) == 2:
                    comparison.add(*sorted(windows, key=lambda each: each.num_workers != first))
                    windows = []
        finally:
            self._is_trying = False

    def _judge(self, turns: Plan, comparison: Comparison, *, cheaper: bool, share: float) -> Generator[int, Window, str]:
        """Let pairs be measured until they say enough; return what they say."""
        number = next(turns)
        while True:
            window = yield number
            before = len(comparison.differences)
            number = turns.send(window)
            num = len(comparison.differences)
            verdict = None
            if num > before:
                if window.is_cut or comparison.is_worse():
                    verdict = "slower"
                elif num in LOOKS:
                    verdict = _verdict(comparison, cheaper=cheaper, is_last=not comparison.is_hopeful())
            if verdict is None and num >= MEAN_PAIRS and self._is_spent(share):
                verdict = SPENT
            if verdict is not None:
                turns.close()
                return verdict

    def _watch(self) -> Plan:
        """Keep the setting until waiting has grown and stays so. If it grows only a little, ten minutes pass until the next time, at least."""
        watch = WaitingWatch(wait_fraction(self.windows[self.best]))
        while True:
            window = yield self.best
            has_grown = watch.add(window)
            if not has_grown or (watch.growth < GREAT_GROWTH and self._clock() - self._looked_again_s < NEXT_LOOK_S):
                continue
            reason = f"waiting has grown from {watch.usual:.1%} to {watch.latest:.1%} of the time, so feedrate looks again"
            self._decide("look-again", self.best, reason, wait_fraction=watch.latest, usual_wait_fraction=watch.usual)
            looked_s = self._clock()
            self.windows = {self.best: self._changed(watch)}
            yield from self._observe()
            latest = wait_fraction(self.windows[self.best][-PER_VISIT:])
            if latest - watch.usual >= RELEASE:
                self._looked_again_s = looked_s
                self.budget.num_looks += 1
                return
            self._decide("enough", self.best, f"waiting has fallen to {latest:.1%} again, so nothing is tried", wait_fraction=latest)
            watch = WaitingWatch(watch.usual)

    def _changed(self, watch: WaitingWatch) -> list[Window]:
        """Return the latest consecutive windows whose share of waiting is nearer to the present one than to the earlier one."""
        middle = (watch.usual + watch.latest) / 2
        later = list(takewhile(lambda each: wait_fraction([each]) > middle, reversed(self.windows[self.best])))
        return later[-2::-1]  # without the first of them, which may have begun before the change

    def _watch_for_good(self) -> Plan:
        while True:
            yield self.own

    def _end(self, kind: str, reason: str, num_workers: int) -> Decision:
        self.best, self.leave, self.speedup, self._is_trying = self.own, reason, None, False
        decision = self._decide(kind, self.own, reason, num_workers=num_workers)
        self._plan = self._watch_for_good()
        self._sprint = self._sprint_for(next(self._plan))
        return decision

    def _is_spent(self, share: float) -> bool:
        batch_s = self._best_batch_s()
        return self.budget.is_spent(self.elapsed()[0] + (self.epoch_batches_left or 0) * (batch_s or 0.0), share)

    def _decide(self, kind: str, target: int, reason: str, **numbers: Any) -> Decision:
        elapsed_s, step = self.elapsed()
        decision = Decision(
            kind=kind, num_workers=target, reason=reason, step=step, time_s=elapsed_s, numbers=numbers
        )
        self.decisions.append(decision)
        return decision

    def _than_own(self, ratio: float, low: float, high: float) -> str:
        return f"{ratio:.2f}x as fast as your own {self.own} [{low:.2f}-{high:.2f}]"

    def _words(self, batches_per_s: float) -> str:
        if self.items_per_batch is None:
            return f"{batches_per_s:,.1f} batches/s"
        return f"{batches_per_s * self.items_per_batch:,.0f} samples/s"


def workers(number: int) -> str:
    """Return a number of workers in words."""
    return "1 worker" if number == 1 else f"{number} workers"


def _verdict(comparison: Comparison, *, cheaper: bool, is_last: bool) -> str | None:
    """Return what the pairs say at a look; None if more are needed."""
    if cheaper:
        if comparison.is_no_worse():
            return "faster, and with fewer workers" if comparison.is_better() else "as fast, with fewer workers"
        seems_slower = len(comparison.differences) >= MEAN_PAIRS and comparison.mean < -2 * WORTH
        return "not shown to be as fast" if is_last or seems_slower else None
    if comparison.is_better():
        return "faster"
    if comparison.is_not_worth_it():
        return "not faster by 2 %"
    return DOUBTFUL if is_last else None
