"""Bring a study up to date with the records of `trials.jsonl` after a crash or the loss of a disk.

A record is written before its result is told (reported) to the study, so the records have priority:
  - a running trial with a record is told the result in the record;
  - a running trial without a record is lost: its setting is enqueued as a new trial, then the old one is marked as lost;
  - if the study has no trial for a record (its journal was lost), the trial is added under the record's number;
  - a told trial without a record (the disk was lost, but the study is in a database) is measured again under a new number.
If reconcile itself crashes, the next call finishes the work; doing it twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import TrialState

from feedrate.analysis.ceilings import is_disturbed
from feedrate.analysis.estimate import cpu_item_s, record_change, record_rate, step_only_sps, wait_fraction
from feedrate.analysis.schema import status
from feedrate.search.study.brain import Brain
from feedrate.search.study.observed import CHANGING, CPU_ITEM, NUM_CPUS, STEP_CPUS, STEP_ONLY
from feedrate.search.study.pruner import LOW
from feedrate.search.study.trials import Reconciled
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import INFEASIBLE

BLAMELESS = ("supervisor-died",)
"""Failure kinds that are the machine's fault, not the setting's."""


def reconcile(brain: Brain, records: Iterable[Mapping[str, Any]], objective: str = "epoch") -> Reconciled:
    """Tell the study the results that it does not know, as the module's docstring describes.

    Args:
        brain: the study; trials with other run ids stay as they are.
        records: the records of the run folder. Those of other studies and kinds are ignored; of several attempts the last counts.
        objective: "epoch" or "steady".
    """
    name = brain.study.study_name
    mine = {record["number"]: record for record in records if record["study"] == name and record["kind"] == "search"}
    num_told = 0
    for number in sorted(mine):
        while len(brain.history()) <= number:
            _add_missing(brain, mine.get(len(brain.history())))
        if brain.history()[number].is_open and not mine[number].get("retried"):  # a retried trial waits for another host
            tell_record(brain, mine[number], objective)
            num_told += 1
    _measure_again(brain, mine)
    return Reconciled(num_told, _requeue_lost(brain))


def _measure_again(brain: Brain, mine: Mapping[int, Any]) -> None:
    """Enqueue the settings of told trials without a record again: the study is in a database, and the disk with the records was lost."""
    for past in brain.history():
        if past.run_id == brain.run_id and past.number not in mine and past.state in ("complete", "pruned", "failed"):
            brain.forget(past)
            if past.config is not None:
                brain.enqueue(past.config, past.origin)


def tell_record(brain: Brain, record: Mapping[str, Any], objective: str) -> None:
    """Tell the study the result in one record, as a running search does after it has written the record."""
    number, rate = record["number"], record_rate(dict(record), objective)
    outcome = status(dict(record))
    if outcome == "failed" or rate is None:
        kind = record.get("failure_kind") or "internal"
        reason = record.get("failure_message") or "nothing was measured"
        brain.tell_failed(number, reason, infeasible=kind in INFEASIBLE, blameless=kind in BLAMELESS)
    elif outcome == "complete":
        # without LOW, a setting that cannot be the answer does not stop other trials
        stops_others = brain.disqualified.allows(record["num_workers"], record["persistent_workers"])
        brain.tell_complete(number, rate.sps, _facts(record, objective) | ({LOW: rate.low_sps} if stops_others else {}))
    else:
        brain.report(number, len(record["window_duration_s"]), rate.sps)
        brain.tell_pruned(number, _facts(record, objective))


def _facts(record: Mapping[str, Any], objective: str) -> dict[str, Any]:
    """Return the attributes that the model of loading uses (expectation.py), and those that people look for in a dashboard."""
    facts: dict[str, Any] = {"wait_fraction": wait_fraction(dict(record))} if record.get("window_wait_s") else {}
    if (step_only := step_only_sps(dict(record))) is not None and not is_disturbed(record):
        facts[STEP_ONLY] = step_only
        facts |= {} if record.get("step_only_cpus") is None else {STEP_CPUS: record["step_only_cpus"]}
    if record_change(record, objective):
        facts[CHANGING] = True
    if (cpu_s := cpu_item_s(record)) is not None:
        facts |= {CPU_ITEM: cpu_s, NUM_CPUS: record["num_cpus"]}
    return facts


def _add_missing(brain: Brain, record: Mapping[str, Any] | None) -> None:
    """Add the study's next trial from its record; without a record add a placeholder, so that later trials keep their numbers."""
    if record is None:
        brain.add(TrialState.FAIL, None, "sampler", {"lost": True})
    else:
        brain.add(TrialState.RUNNING, LoaderConfig.from_dict(record), record["origin"])


def _requeue_lost(brain: Brain) -> list[LoaderConfig]:
    lost = [past.number for past in brain.history() if past.state == "running" and past.run_id == brain.run_id]
    given_up = [brain.give_up(number, "the search ended while this trial ran") for number in lost]
    return [config for config in given_up if config is not None]
