"""One search as plain logic: what to measure next, what to write down, when to stop. Imports neither Ray nor Optuna.

A trial's record is first appended to `trials.jsonl` and fsynced, and only then is the result reported to the study. A crash between
the two leaves a record that the study does not know; `resume` reports it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from feedrate.analysis.ceilings import Ceilings
from feedrate.analysis.estimate import rate_so_far, record_change, record_rate
from feedrate.analysis.rounds import MIN_ROUNDS, TIED_FRACTION
from feedrate.analysis.run_folder import RunFolder
from feedrate.analysis.schema import SCHEMA, status
from feedrate.search.options import SearchOptions, between_epochs, counted_anyway
from feedrate.search.record import HostSetAside, SearchRecord
from feedrate.search.session.budget import Budget
from feedrate.search.session.confirmation import Confirmation
from feedrate.search.session.display import Display
from feedrate.search.session.finalists import (
    Candidate,
    able,
    candidate_of,
    choose,
    for_rounds,
    leading,
    rounds_s,
    rounds_time_s,
)
from feedrate.search.session.first_settings import Opening
from feedrate.search.session.host_health import HostHealth
from feedrate.search.session.search_end import EXHAUSTED, LEAST_TOLD, at_ceiling, nothing_to_gain, same_failures
from feedrate.search.session.trial_request import TrialRequest
from feedrate.search.space.idle_workers import IdleWorkers
from feedrate.search.space.search_space import SearchSpace
from feedrate.search.study.brain import Brain
from feedrate.search.study.reconcile import tell_record
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure

FIRST_TRIAL_GUESS_S = 10.0
SHORTEST_TRIAL_S = 5.0
WORTH_ROUNDS_FRACTION = 0.02
"""Least possible gain, as a fraction of the baseline's rate, for which rounds are worth their time."""


class Session:
    """A running search.

    Args:
        brain: the study.
        folder: the run folder, to which records are written.
        options: the options of the search, among them budget and objective.
        study: name of the study.
        baselines: the settings to measure first, one per batch size.
        seeds: settings that are worth trying early.
        epoch_samples: items in an epoch; None if unknown.
        display: shows what happens.
        on_measured: called when another setting has been measured.
        clock: returns seconds since 1970; tests pass their own.
    """

    def __init__(
        self,
        *,
        brain: Brain,
        folder: RunFolder,
        options: SearchOptions,
        study: str,
        baselines: Sequence[LoaderConfig],
        seeds: Sequence[LoaderConfig],
        epoch_samples: int | None,
        display: Display,
        on_measured: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.brain, self.folder, self.options, self.study = brain, folder, options, study
        self.epoch_samples, self.display, self.clock = epoch_samples, display, clock
        self._on_measured = on_measured
        self.search_reason: str | None = None
        """Why no further setting is tried; None while settings are tried. Confirmation rounds may still measure the best ones again."""
        self.stop_reason: str | None = None
        """Why the search ended; None until everything, including rounds, is over."""
        self.unconfirmed_because = None if options.confirm else "rounds were turned off (--no-confirm)"
        """Why there were no rounds; None if there were some, or if it is not decided yet."""
        self.ceilings = Ceilings()
        self.records: list[dict[str, Any]] = []
        self._candidates: dict[LoaderConfig, Candidate] = {}
        self._rates: dict[LoaderConfig, float] = {}
        self._batch_sizes = {config.batch_size for config in baselines}
        self._num_replayed = 0
        self._has_between_epochs = False
        self.confirmation: Confirmation | None = None
        """The rounds at the end; None until they begin."""
        self._running: dict[int, TrialRequest] = {}
        self._elsewhere: dict[int, TrialRequest] = {}
        """Trial number -> a trial that failed and waits for another host."""
        self._failures: dict[int, dict[str, Any]] = {}
        """Trial number -> the last record of a trial that failed and that another host is to try."""
        self.health = HostHealth(self._set_aside)
        self.hosts: Callable[[], Collection[str]] = tuple
        """Returns the ids of the hosts that could take a trial now; none if the engine did not set it."""
        self._stopped: set[int] = set()
        self._spent_s: list[float] = []
        self._gain_fraction: float | None = None
        self._baselines, self._opening = list(baselines), Opening(baselines, seeds)
        self.budget = Budget(options.time_budget_s, clock)
        display.budget = self.budget

    def replay(self, records: Sequence[dict[str, Any]]) -> None:
        """Learn the records from before a resume; their time does not count against the budget."""
        for record in records:
            self._learn(record)
            self.display.learn(record, record_rate(record, self.options.objective))
        self._num_replayed = len(self.records)

    def next(self) -> TrialRequest | None:
        """Return the next trial. None means that there is none now; once `stop_reason` is set, there will be none."""
        request = self._next_elsewhere()
        if request is None and self.search_reason is None and not self._all_closed():
            request = self._next_setting()
        self.display.ahead(self._least_seconds_ahead(), self._gain_fraction)
        if request is None and self.stop_reason is None:
            request = self._next_round() if self.options.confirm and self.search_reason is not None else None
            if self._is_over():
                self.stop_reason = self.search_reason
        return request

    def _is_over(self) -> bool:
        if self._elsewhere or (self._running and len(self.hosts()) > 1):
            return False  # a failure may have to be tried again on another host
        return not self.options.confirm or (self.confirmation is not None and self.confirmation.is_over)

    def _all_closed(self) -> bool:
        """Return whether every host is under suspicion, so that new settings wait until the retried ones have ended."""
        hosts = set(self.hosts())
        return bool(hosts) and hosts <= self.health.closed and bool(self._running or self._elsewhere)

    def _next_elsewhere(self) -> TrialRequest | None:
        """Return a trial that failed on one host and is to be tried on another one; None if no such trial waits."""
        while self._elsewhere:
            number, request = next(iter(self._elsewhere.items()))
            hosts = set(self.hosts())
            if hosts and hosts <= self.avoided(request):  # if there is no host at all, wait: one may come back
                self.nowhere(request)
            elif self.seconds_left() <= 0 and request.origin != "baseline":
                del self._elsewhere[number]
                self.health.forget(request.config)
                self.brain.give_up(number, "the time budget was spent before another host tried the setting")
            else:
                del self._elsewhere[number]
                self._begin(request)
                return request
        return None

    def avoided(self, request: TrialRequest) -> set[str]:
        """Return the ids of the hosts that must not measure this trial."""
        return self.health.set_aside.keys() | (request.avoid or self.health.closed)

    def nowhere(self, request: TrialRequest) -> None:
        """Count the failure of a trial that was to be tried on another host, because no other host is left."""
        self._elsewhere.pop(request.number, None)
        if self._running.pop(request.number, None) is not None:
            self.budget.ended(request.key)
        self.health.forget(request.config)
        tell_record(self.brain, self._failures.pop(request.number), self.options.objective)

    def _begin(self, request: TrialRequest) -> None:
        self._running[request.number] = request
        self.budget.asked(request.key)
        self.display.started(request.number, request.config, request.origin)

    def _next_setting(self) -> TrialRequest | None:
        self._opening.review(self.measured(), self.brain.predict, self.display.say, self._rates)
        if yours := self._yours_without_rounds():
            self.brain.enqueue(yours, "baseline")
        self.search_reason = self._why_stop()
        if self.search_reason is None and not self.brain.waiting():
            while (found := self._opening.next()) and not self.brain.enqueue(*found):  # skips those tried before a resume
                pass
        ask = self.brain.ask() if self.search_reason is None else None
        if ask is None:
            self.search_reason = self.search_reason or EXHAUSTED
            return None
        request = TrialRequest(
            kind="search",
            number=ask.number,
            configs=(ask.config,),
            origin=ask.origin,
            measure_step=not self.has_ceiling(ask.config.batch_size),
            between_epochs=not self._has_between_epochs,
            # a trial that would exceed the budget is shortened, not left out
            max_trial_s=min(self.options.max_trial_s, max(self.seconds_left(), SHORTEST_TRIAL_S)),
        )
        self._begin(request)
        return request

    def _next_round(self) -> TrialRequest | None:
        if self._running or self._elsewhere:
            return None  # a running trial may become a finalist
        if self.confirmation is None:
            able = self._finalists()
            at_ceiling = any(each.is_baseline and self._near_ceiling(each) for each in able)
            finalists, self.unconfirmed_because = for_rounds(able, self.seconds_left(), at_ceiling=at_ceiling)
            self.confirmation = Confirmation(self, finalists)
        return self.confirmation.next()

    def should_stop(self, number: int, columns: dict[str, Any]) -> bool:
        """Return whether a running trial can no longer win, and remember it for the trial's record."""
        within = rate_so_far(columns, self.options.objective, columns.get("epoch_samples") or self.epoch_samples)
        if within is None:
            return False  # the rate still rises, or may rise soon
        self.brain.report(number, len(columns["window_duration_s"]), within.sps, within.half_width_fraction)
        if self.brain.should_prune(number):
            self._stopped.add(number)
            return True
        return False

    def completed(self, number: int, columns: dict[str, Any], failure: dict[str, Any] | None) -> None:
        """Write the record of a trial that ended, then report it to the study.

        Args:
            number: number of the trial.
            columns: measurement and host columns, as far as they are known.
            failure: failure columns; None if the setting was measured.
        """
        request = self._running.pop(number, None)
        if request is None:
            return  # it was reported already
        if failure is not None:
            failure = failure | {"failure_message": failure["failure_message"] + self._what_fitted(request, failure)}
        stopped_early = failure is None and number in self._stopped
        avoid = self.learn_host(request.config, columns, failure, is_baseline=request.origin == "baseline")
        more = {"retried": True} if avoid is not None else {}
        record = self.write(request, request.config, columns, failure, origin=request.origin, stopped_early=stopped_early, **more)
        if avoid is not None:
            self._failures[number] = record
            self._elsewhere[number] = replace(request, attempt=request.attempt + 1, avoid=avoid)
            self.budget.ended(request.key)
            self.display.finished(record, None)
            return
        self._failures.pop(number, None)
        objective = self.options.objective
        rate, change = record_rate(record, objective), record_change(record, objective)
        tell_record(self.brain, record, objective)
        self.budget.ended(request.key)
        self._spent_s.append(record["finished_unix_s"] - record["started_unix_s"])
        self.display.finished(record, rate, change)
        if record.get("step_returned") is not None:
            self.display.note_once(counted_anyway(record["step_returned"]))
        if (between := between_epochs(record)) is not None:
            self.display.note_once(between)
        if request.measure_step and failure is None:
            size, is_baseline = record["batch_size"], request.origin == "baseline" and not change
            self.display.ceiling(size, self.ceilings.at(size), rate if is_baseline else None, self.ceilings.why_not(size))
        if failure is None and request.kind == "search":
            self._on_measured()

    def write(
        self,
        request: TrialRequest,
        config: LoaderConfig,
        columns: dict[str, Any],
        failure: dict[str, Any] | None,
        *,
        stopped_early: bool = False,
        **more: Any,
    ) -> dict[str, Any]:
        """Append the record of one measurement to the run folder, learn from it, and return it; `more` are further columns."""
        record = {
            "schema": SCHEMA,
            "study": self.study,
            "number": request.number,
            "attempt": request.attempt,
            "kind": request.kind,
            "started_unix_s": self.budget.began_unix_s(request.key),
            "finished_unix_s": self.clock(),
            **config.to_dict(),
            **columns,
            **(failure or {}),
            "stopped_early": stopped_early,
            **more,
        }
        if record.get("epoch_samples") is None:  # otherwise the trial has counted it, in the items that it trains
            record["epoch_samples"] = self.epoch_samples
        self.folder.append(record)
        size = record["batch_size"]
        was_known = self.has_ceiling(size)
        self._learn(record)
        if was_known and not self.has_ceiling(size):
            self.display.ceiling(size, None, None, self.ceilings.why_not(size))
        return record

    def learn_host(
        self, config: LoaderConfig, columns: dict[str, Any], failure: dict[str, Any] | None, *, is_baseline: bool
    ) -> frozenset[str] | None:
        """Remember that a host measured a setting, or failed to.

        Returns:
            None if the setting needs no further attempt; otherwise the ids of the hosts that must not make it, because they have failed.
        """
        host = columns.get("host_id")
        # a failure on several hosts at once says nothing about one of them, and there may be no others
        if host is None or self.options.hosts_per_trial > 1:
            self.health.forget(config)
            return None
        self.health.names[host] = columns.get("hostname") or host
        if failure is not None:
            return self.health.failed(config, host, failure, self.hosts(), is_baseline=is_baseline)
        self.health.measured(config, host)
        return None

    def _set_aside(self, host: str, why: str) -> None:
        name = self.health.name_of(host)
        self.display.say(f"note: no more trials of this search run on {name}: {why}")
        record = SearchRecord.read(self.folder)
        aside = (*record.set_aside, HostSetAside(hostname=name, host_id=host, reason=why))
        replace(record, set_aside=aside).write(self.folder)

    def lost(self, number: int, reason: str = "", *, starved: bool = False, place: dict[str, Any] | None = None) -> None:
        """Record a trial as failed because its supervisor died; its setting may not be at fault, so it is tried once more.

        Args:
            number: number of the trial.
            reason: Ray's reason for the death.
            starved: whether it was killed for the memory that its trial took; the setting is then not tried again.
            place: the columns host_id and hostname, if they are known.
        """
        request = self._running.get(number)
        if request is None:
            return
        kind, message = "supervisor-died", "the process that supervises the trial was killed, or its node was lost"
        if starved:
            kind = "out-of-memory"
            message = (
                "the node ran low on memory, so Ray's memory monitor ended the trial: use fewer workers, a smaller prefetch_factor or a "
                "smaller batch_size. Or start Ray on that node with RAY_memory_monitor_refresh_ms=0: feedrate guards the memory itself"
            )
        failure = Failure(kind=kind, phase="measure", message=message, cause=(reason,) if reason else ())
        self.completed(number, dict(place or {}), failure.columns())
        if not starved and number not in self._elsewhere:
            self.brain.enqueue(request.config, request.origin)  # the study refuses a setting that was tried twice

    def abandon(self) -> None:
        """Give up the running trials of an interrupted search; their settings wait for `resume`, which also begins a new round."""
        for number in [*self._running, *self._elsewhere]:
            self.give_back(number, "the search was interrupted")

    def give_back(self, number: int, reason: str) -> None:
        """Enqueue the setting of a trial again that was not measured; no record is written."""
        request = self._running.pop(number, None) or self._elsewhere.pop(number)
        self.budget.ended(request.key)
        self.health.forget(request.config)
        self.brain.give_up(number, reason)

    @property
    def running(self) -> list[TrialRequest]:
        """Trials and rounds that have been asked for and have not ended."""
        return [*self._running.values(), *(self.confirmation.running if self.confirmation else [])]

    def has_ceiling(self, batch_size: int | None) -> bool:
        """Return whether the ceiling, the rate of the step alone, is known at this batch size (ceilings.py)."""
        return self.ceilings.at(batch_size) is not None

    def measured(self) -> list[Candidate]:
        """Return the settings that were measured to their end and may be the answer."""
        return able(list(self._candidates.values()), self.brain.disqualified)

    def seconds_left(self) -> float:
        """Return the seconds left of the time budget."""
        return self.budget.seconds_left()

    def _what_fitted(self, request: TrialRequest, failure: dict[str, Any]) -> str:
        """Return a hint for a failure by lack of memory: the largest smaller batch size that was trained; else an empty text."""
        asked = request.config.batch_size
        if failure["failure_kind"] not in ("cuda-out-of-memory", "out-of-memory") or asked is None:
            return ""
        sizes = [record["batch_size"] for record in self.records if status(record) != "failed" and record["batch_size"]]
        fitted = max((size for size in sizes if size < asked), default=None)
        return f"; batch_size {fitted} fitted" if fitted is not None else ""

    def _finalists(self) -> list[Candidate]:
        """Return the settings that rounds would measure now."""
        untried = [config for config in self._baselines if config not in self.brain.tried()]
        known, left_out = list(self._candidates.values()), self.brain.disqualified
        return choose(known, left_out, untried=untried, max_trial_s=self.options.max_trial_s)

    def _yours_without_rounds(self) -> LoaderConfig | None:
        """Return the baseline at the best setting's batch size if it was skipped and there will be no rounds to measure it, else None."""
        chosen = [] if set(self._baselines) <= self.brain.tried() else self._finalists()
        yours = [each.config for each in chosen if each.is_baseline and each.config.batch_size == chosen[0].config.batch_size]
        rounds = self.options.confirm and for_rounds(chosen, self.seconds_left(), at_ceiling=False)[0]
        return None if rounds else next((config for config in yours if config not in self._candidates), None)

    def _near_ceiling(self, candidate: Candidate) -> bool:
        """Return whether training without loading would be at most 2 % faster than this setting, at every batch size."""
        known = [self.ceilings.at(size) for size in self._batch_sizes]
        most_sps = candidate.rate.sps * (1 + WORTH_ROUNDS_FRACTION)
        return not candidate.is_changing and all(sps is not None and sps <= most_sps for sps in known)

    def _why_stop(self) -> str | None:
        tried = self.brain.counts().told + len(self._running) + len(self._elsewhere)
        if self.options.max_trials is not None and tried >= self.options.max_trials:
            one = self.options.max_trials == 1
            return f"{self.options.max_trials} {'setting was' if one else 'settings were'} tried (--max-trials)"
        mine = [record for record in self.records[self._num_replayed :] if not record.get("retried")]  # a resumed search may follow a repair of the workload
        if (reason := same_failures(mine)) is not None:
            return reason
        expected_s = self._trial_s()
        kept_s = rounds_time_s(self._finalists(), self.options.time_budget_s) if self.options.confirm else 0.0
        if self._spent_s and self.seconds_left() - kept_s < expected_s:
            return "the time budget is spent (--time-budget)"
        if self.options.keep_going:
            return None
        expected = self.brain.expectation()
        if expected is None:
            return None
        self._gain_fraction = expected.gain_fraction
        waiting = [*self.brain.waiting(), *self._opening.ahead]
        best = max(self.measured(), key=lambda each: each.rate.low_sps, default=None)
        reason = at_ceiling(best, expected.surely_sps, self.ceilings.known(), self._batch_sizes, waiting)
        if reason is not None or waiting:
            return reason
        reason = nothing_to_gain(expected.gain_fraction, self.brain.counts().told)
        return None if reason is not None and self._extended() else reason

    def _trial_s(self) -> float:
        """Return the expected seconds of a trial: the mean of the latest five, or a guess before the first."""
        recent = self._spent_s[-5:]
        return sum(recent) / len(recent) if recent else min(FIRST_TRIAL_GUESS_S, self.options.time_budget_s / 3)

    def _least_seconds_ahead(self) -> float | None:
        """Return the seconds that the search still needs if it finds nothing better.

        None before the first trial has ended, and if the search goes on whatever it finds.
        """
        counts = self.brain.counts()
        if not self._spent_s or (self.options.keep_going and self.search_reason is None):
            return None
        num_ahead = max(counts.waiting + len(self._opening.ahead), LEAST_TOLD - counts.told - len(self._running), 0)
        if self.options.max_trials is not None:
            num_ahead = min(num_ahead, self.options.max_trials - counts.told - len(self._running))
        if self.search_reason is not None:
            num_ahead = 0
        num_rounds = 0 if not self.options.confirm else self.confirmation.num_ahead if self.confirmation else MIN_ROUNDS
        finalists = self.confirmation.finalists if self.confirmation else self._finalists()
        return self._trial_s() * (num_ahead + len(self._running)) + num_rounds / MIN_ROUNDS * rounds_s(finalists)

    def _extended(self) -> bool:
        """Extend the search space if the best setting is on the edge of a default range; return whether there is more to try."""
        allowed = self.measured()
        if not allowed:
            return False
        best = leading(allowed)
        fewer = [each for each in allowed if each.config.num_workers < best.config.num_workers]
        if any(each.rate.sps >= best.rate.sps * (1 - TIED_FRACTION) for each in fewer):
            return False  # the rate levels off inside the range
        space = self.brain.extend(best.config)
        if space is None:
            return False
        self._keep_space(space)
        self.display.say(f"the fastest setting so far, {best.name}, has as many workers as the default range allows, so the search now goes up to {space.values('num_workers')[-1]} workers")
        return True

    def _learn(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if (rate := record_rate(record, self.options.objective)) is not None:
            self._rates[LoaderConfig.from_dict(record)] = rate.sps
        candidate = candidate_of(record, self.options.objective)
        if candidate is not None:
            self._candidates[candidate.config] = candidate
        self.ceilings.learn_record(record)
        self._learn_idle(record)
        if record.get("between_epochs_s") is not None or record.get("between_epochs_failure") is not None:
            self._has_between_epochs = True

    def _learn_idle(self, record: dict[str, Any]) -> None:
        """Leave out settings with more workers than deliver something, once a trial has shown how many do."""
        idle = IdleWorkers.of(record)
        space = None if idle is None else self.brain.without(idle)
        if idle is None or space is None:
            return
        self._keep_space(space)
        self._opening.leave_out(lambda config: space.has_idle(config.num_workers))
        self.display.note_once(f"{idle.remark()}, so {idle.in_words()} are not tried any more")

    def _keep_space(self, space: SearchSpace) -> None:
        replace(SearchRecord.read(self.folder), space=space).write(self.folder)
