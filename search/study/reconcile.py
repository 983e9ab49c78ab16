"""Brings a study up to the records of `trials.jsonl`: what a crash kept from being told, or took from the study.

Order of truth: a record is written before the study is told (DESIGN.md 1), so that after a crash
  - a running trial with a record is told what the record says;
  - a running trial without one is lost: its setting is enqueued as a new trial, then it is marked;
  - a record that the study has no trial for (its journal was lost) is added under its own number;
  - a told trial without a record (the disk was lost, the study is in a database) is measured again under a new number.
A crash inside reconcile leaves work that the next one finishes; doing it twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import TrialState

from feedrate.analysis.ceilings import is_disturbed
from feedrate.analysis.estimate import record_change, record_rate, record_steady, step_only_sps, wait_fraction
from feedrate.analysis.schema import status
from feedrate.search.study.brain import Brain
from feedrate.search.study.observed import CHANGING, CPU_ITEM, NUM_CPUS, STEP_ONLY
from feedrate.search.study.pruner import LOW
from feedrate.search.study.trials import Reconciled
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import INFEASIBLE

BLAMELESS = ("supervisor-died",)
"""Failure kinds that are the machine's fault, not the setting's."""


def reconcile(brain: Brain, records: Iterable[Mapping[str, Any]], objective: str = "epoch") -> Reconciled:
    """Tell the study what it does not know; see the module's first lines.

    Args:
        brain: of this study; trials of other run ids are left alone.
        records: of the run folder, other studies and kinds among them; of several attempts the last counts.
        objective: "epoch" or "steady".
    """
    name = brain.study.study_name
    mine = {record["number"]: record for record in records if record["study"] == name and record["kind"] == "search"}
    num_told = 0
    for number in sorted(mine):
        while len(brain.history()) <= number:
            _add_missing(brain, mine.get(len(brain.history())))
        if brain.history()[number].is_open and not mine[number].get("retried"):  # else no other host had tried it yet
            tell_record(brain, mine[number], objective)
            num_told += 1
    _measure_again(brain, mine)
    return Reconciled(num_told, _requeue_lost(brain))


def _measure_again(brain: Brain, mine: Mapping[int, Any]) -> None:
    """A trial that a database knows and no record tells of: the disk with the record was lost, and its setting waits anew."""
    for past in brain.history():
        if past.run_id == brain.run_id and past.number not in mine and past.state in ("complete", "pruned", "failed"):
            brain.forget(past)
            if past.config is not None:
                brain.enqueue(past.config, past.origin)


def tell_record(brain: Brain, record: Mapping[str, Any], objective: str) -> None:
    """Tell the study one record, as a live search does after writing it."""
    number, rate = record["number"], record_rate(dict(record), objective)
    outcome = status(dict(record))
    if outcome == "failed" or rate is None:
        kind = record.get("failure_kind") or "internal"
        reason = record.get("failure_message") or "nothing was measured"
        brain.tell_failed(number, reason, infeasible=kind in INFEASIBLE, blameless=kind in BLAMELESS)
    elif outcome == "complete":
        # not by a rate of a setting that cannot be the answer
        stops_others = brain.disqualified.allows(record["num_workers"], record["persistent_workers"])
        brain.tell_complete(number, rate.sps, _facts(record, objective) | ({LOW: rate.low_sps} if stops_others else {}))
    else:
        brain.report(number, len(record["window_duration_s"]), rate.sps)
        brain.tell_pruned(number, _facts(record, objective))


def _facts(record: Mapping[str, Any], objective: str) -> dict[str, Any]:
    """What the model of loading goes by (expectation.py), and what people look for in a dashboard."""
    facts: dict[str, Any] = {"wait_fraction": wait_fraction(dict(record))} if record.get("window_wait_s") else {}
    if (step_only := step_only_sps(dict(record))) is not None and not is_disturbed(record):
        facts[STEP_ONLY] = step_only
    if record_change(record, objective):
        facts[CHANGING] = True
    steady, used, num_cpus = record_steady(dict(record)), record.get("own_cpu_fraction"), record.get("num_cpus")
    if steady is not None and used and num_cpus:
        facts |= {CPU_ITEM: used * num_cpus / steady.sps, NUM_CPUS: num_cpus}
    return facts


def _add_missing(brain: Brain, record: Mapping[str, Any] | None) -> None:
    """Make the next trial number: what was measured under it, or a place holder that keeps later numbers right."""
    if record is None:
        brain.add(TrialState.FAIL, None, "sampler", {"lost": True})
    else:
        brain.add(TrialState.RUNNING, LoaderConfig.from_dict(record), record["origin"])


def _requeue_lost(brain: Brain) -> list[LoaderConfig]:
    lost = [past.number for past in brain.history() if past.state == "running" and past.run_id == brain.run_id]
    given_up = [brain.give_up(number, "the search ended while this trial ran") for number in lost]
    return [config for config in given_up if config is not None]
