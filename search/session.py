"""One search as plain logic: what to measure next, what to write down, when to stop. Neither Ray nor Optuna.

Order of truth: a trial's record is appended to `trials.jsonl` and fsynced, *then* the study is told. A crash between
the two leaves a record that the study does not know; `resume` tells it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from feedrate.analysis.estimate import epoch_factor, record_rate, steady_rate, step_only_sps
from feedrate.analysis.run_folder import RunFolder
from feedrate.analysis.schema import SCHEMA, status
from feedrate.search.options import SearchOptions
from feedrate.search.progress import Display
from feedrate.search.reconcile import tell_record
from feedrate.search.study import Brain
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import INFEASIBLE, Failure

FIRST_TRIAL_GUESS_S = 10.0
SHORTEST_TRIAL_S = 5.0
EARLY_SEEDS = 2
SAME_FAILURES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One measurement that was asked for."""

    number: int
    config: LoaderConfig
    origin: str
    measure_step: bool
    max_trial_s: float
    asked_unix_s: float


class Session:
    """A search under way.

    Args:
        brain: the study.
        folder: where records go.
        options: budget and objective.
        baselines: the settings to measure first, one for each batch size.
        seeds: settings worth trying early.
        epoch_samples: items in an epoch; None when unknown.
        display: told what happens.
        clock: seconds since 1970; tests pass their own.
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.brain, self.folder, self.options, self.study = brain, folder, options, study
        self.epoch_samples, self.display, self.clock = epoch_samples, display, clock
        self.stop_reason: str | None = None
        self.ceilings: dict[int | None, float] = {}
        self.records: list[dict[str, Any]] = []
        self._num_replayed = 0
        self._running: dict[int, Request] = {}
        self._stopped: set[int] = set()
        self._spent_s: list[float] = []
        # a few others before the baselines of further batch sizes: a short budget must not measure baselines only
        seeds = [config for config in seeds if config not in baselines]
        queue = [*baselines[:1], *seeds[:EARLY_SEEDS], *baselines[1:], *seeds[EARLY_SEEDS:]]
        for config in queue:
            brain.enqueue(config, "baseline" if config in baselines else "seed")
        self.started_unix_s = clock()

    def replay(self, records: Sequence[dict[str, Any]]) -> None:
        """Take over what an earlier driver of this run has recorded; its time does not count against the budget."""
        for record in records:
            self._learn(record)
            self.display.learn(record, record_rate(record, self.options.objective))
        self._num_replayed = len(self.records)

    def next(self) -> Request | None:
        """The next measurement, or None when the search is over; `stop_reason` then says why."""
        if self.stop_reason is None:
            self.stop_reason = self._why_stop()
        if self.stop_reason is not None:
            return None
        ask = self.brain.ask()
        if ask is None:
            self.stop_reason = "every setting of the space has been tried"
            return None
        request = Request(
            number=ask.number,
            config=ask.config,
            origin=ask.origin,
            measure_step=ask.config.batch_size not in self.ceilings,
            # a trial that would outlast the budget is cut short rather than not begun
            max_trial_s=min(self.options.max_trial_s, max(self.seconds_left(), SHORTEST_TRIAL_S)),
            asked_unix_s=self.clock(),
        )
        self._running[request.number] = request
        self.display.started(request.number, request.config, request.origin)
        return request

    def should_stop(self, number: int, columns: dict[str, Any]) -> bool:
        """Whether a running trial cannot win any more; remembered, so that its record says so."""
        within = steady_rate(
            columns["window_duration_s"],
            columns["window_num_items"],
            columns["window_num_batches"],
            columns["window_produced_batches"],
            run_sd_fraction=0.0,
        )
        factor = 1.0
        if self.options.objective == "epoch":
            factor = epoch_factor(within.sps, columns["boundary_s"], self.epoch_samples)
        self.brain.report(number, len(columns["window_duration_s"]), within.sps * factor, within.half_width_fraction)
        if self.brain.should_prune(number):
            self._stopped.add(number)
            return True
        return False

    def completed(self, number: int, columns: dict[str, Any], failure: dict[str, Any] | None) -> None:
        """A trial ended: write its record, then tell the study.

        Args:
            number: the trial.
            columns: measurement and host columns, as far as they are known.
            failure: failure columns, None when the setting was measured.
        """
        request = self._running.pop(number, None)
        if request is None:
            return  # told already
        if failure is not None:
            failure = failure | {"failure_message": failure["failure_message"] + self._what_fitted(request, failure)}
        record = {
            "schema": SCHEMA,
            "study": self.study,
            "number": number,
            "attempt": 1,
            "kind": "search",
            "origin": request.origin,
            "started_unix_s": request.asked_unix_s,
            "finished_unix_s": self.clock(),
            **request.config.to_dict(),
            **columns,
            **(failure or {}),
            "stopped_early": failure is None and number in self._stopped,
        }
        if self.epoch_samples is not None:
            record["epoch_samples"] = self.epoch_samples
        self.folder.append(record)
        self._learn(record)
        rate = record_rate(record, self.options.objective)
        tell_record(self.brain, record, self.options.objective)
        self._spent_s.append(record["finished_unix_s"] - record["started_unix_s"])
        self.display.finished(record, rate)
        if request.measure_step and record["batch_size"] in self.ceilings:
            self.display.ceiling(
                record["batch_size"],
                self.ceilings[record["batch_size"]],
                rate if request.origin == "baseline" else None,
            )

    def lost(self, number: int, reason: str = "", *, starved: bool = False) -> None:
        """The trial's supervisor died. It is recorded as failed, and the setting, which may be innocent, is tried once more.

        Args:
            number: the trial.
            reason: Ray's word for it.
            starved: it was killed for the memory that its trial took; the setting is not tried again.
        """
        request = self._running.get(number)
        if request is None:
            return
        kind, message = "supervisor-died", "the process that watches the trial was killed, or its node was lost"
        if starved:
            kind = "out-of-memory"
            message = (
                "the node ran low on memory, and Ray's memory monitor ended the trial: use fewer workers, a smaller prefetch_factor or a "
                "smaller batch_size, or start that node's Ray with RAY_memory_monitor_refresh_ms=0, as feedrate has a guard of its own"
            )
        failure = Failure(kind=kind, phase="measure", message=message, cause=(reason,) if reason else ())
        self.completed(number, {}, failure.columns())
        if not starved:
            self.brain.enqueue(request.config, request.origin)  # refused when it was tried twice

    def abandon(self) -> None:
        """The search was interrupted: what still runs is given up, and waits for `resume`."""
        for request in self.running:
            self._running.pop(request.number)
            self.brain.give_up(request.number, "the search was interrupted")

    @property
    def running(self) -> list[Request]:
        """Measurements asked for and not ended."""
        return list(self._running.values())

    def seconds_left(self) -> float:
        """Of the time budget."""
        return self.options.time_budget_s - (self.clock() - self.started_unix_s)

    def _what_fitted(self, request: Request, failure: dict[str, Any]) -> str:
        """What to add to a failure for want of memory: the largest smaller batch that was trained."""
        asked = request.config.batch_size
        if failure["failure_kind"] not in ("cuda-out-of-memory", "out-of-memory") or asked is None:
            return ""
        sizes = [record["batch_size"] for record in self.records if status(record) != "failed" and record["batch_size"]]
        fitted = max((size for size in sizes if size < asked), default=None)
        return f"; batch_size {fitted} fitted" if fitted is not None else ""

    def _why_stop(self) -> str | None:
        tried = self.brain.counts().told + len(self._running)
        if self.options.max_trials is not None and tried >= self.options.max_trials:
            return f"{self.options.max_trials} settings were tried (--max-trials)"
        mine = self.records[self._num_replayed :]  # a resumed search may follow a repair of the workload
        last = [_reason(record) for record in mine[-SAME_FAILURES:]]
        if len(last) == SAME_FAILURES and last[0] is not None and len(set(last)) == 1:
            return f"the last {SAME_FAILURES} settings failed for the same reason"
        recent = self._spent_s[-5:]
        expected_s = sum(recent) / len(recent) if recent else min(FIRST_TRIAL_GUESS_S, self.options.time_budget_s / 3)
        if self._spent_s and self.seconds_left() < expected_s:
            return "the time budget is spent (--time-budget)"
        return None

    def _learn(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        ceiling = step_only_sps(record)
        if ceiling is not None and record["batch_size"] not in self.ceilings:
            self.ceilings[record["batch_size"]] = ceiling


def _reason(record: dict[str, Any]) -> str | None:
    """Why a trial failed; samples, processes and times differ where the reason does not, sizes that do not fit matter."""
    message = record.get("failure_message")
    if message is None or record.get("failure_kind") in INFEASIBLE:
        return message
    return re.sub(r"\d+", "#", message)


def baseline_configs(baseline: LoaderConfig, batch_sizes: Sequence[int | None]) -> list[LoaderConfig]:
    """The baseline at every batch size, its own first: speed-ups compare equal batch sizes."""
    ordered = sorted(batch_sizes, key=lambda size: size != baseline.batch_size)
    return [replace(baseline, batch_size=size) for size in ordered]


def rules_of_thumb(batch_size: int | None, num_cpus: int, accelerator: bool) -> list[LoaderConfig]:
    """Settings that people use without measuring (PEERS.md 3c): 0, 2, one a CPU, 8 and 16 workers."""
    workers = dict.fromkeys([0, num_cpus, 8, 2, 16])
    return [
        LoaderConfig(num_workers=number, batch_size=batch_size, pin_memory=accelerator, persistent_workers=number > 0)
        for number in workers
    ]
