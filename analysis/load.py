"""`load_run`: read a run folder into pandas tables, even while the search is running.

A bad record, a torn line or a broken best.json does not make the run unreadable: it is left out and listed in `Run.problems`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from feedrate.analysis.best import final_best
from feedrate.analysis.clean import clean, label, printable
from feedrate.analysis.estimate import (
    Rate,
    copy_only_sps,
    epoch_memory_bytes,
    naive_sps,
    record_change,
    record_rate,
    record_steady,
    step_only_sps,
    wait_fraction,
)
from feedrate.analysis.ranks import rank_waits
from feedrate.analysis.remote import is_url, local_copy
from feedrate.analysis.run import Run
from feedrate.analysis.run_folder import RunError, RunFolder
from feedrate.analysis.schema import status
from feedrate.analysis.setting import config_text
from feedrate.analysis.summary import ranking
from feedrate.analysis.tables import OF_A_WINDOW, RANK_WINDOW_DTYPES, TRIAL_DTYPES, WINDOW_DTYPES, WINDOW_KEY, frame

SEARCH_SCHEMA = "feedrate/search/1"
OBJECTIVES = ("epoch", "steady")


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run folder, even while the search is running.

    Args:
        path: a folder, or an address that pyarrow or fsspec opens (`s3://bucket/run`); for an address, `Run.path` is only
            its last part.

    Raises:
        RunError: the folder is no run, or a newer version of feedrate wrote it.

    Example:
        >>> from feedrate.analysis import load_run
        >>> run = load_run("docs/example-run")
        >>> list(run.trials.loc[0, ["origin", "config", "status"]])
        ['baseline', 'b32 w0', 'complete']
    """
    if is_url(path):
        with local_copy(os.fspath(path)) as copy:
            return replace(_load(RunFolder(copy)), path=Path(copy.name))
    return _load(RunFolder(path))


def _load(folder: RunFolder) -> Run:
    search = printable(folder.read_search())
    if search.get("schema") != SEARCH_SCHEMA:
        reads = f"this feedrate reads {SEARCH_SCHEMA!r}. Install the version that wrote it"
        raise RunError(f"{folder.search} has schema {search.get('schema')!r}; {reads}")
    raw, problems = folder.records()
    objective = search.get("objective", "epoch")
    if objective not in OBJECTIVES:
        problems.append(f"search.json has the unknown objective {objective!r}; epoch is used instead")
        objective = "epoch"
    cleaned = (clean(record, position, problems) for position, record in enumerate(raw, start=1))
    records = [record for record in cleaned if record is not None]
    current = _current(records, problems)
    rows = [
        record | {"superseded": index not in current} | _derived(record, objective, problems)
        for index, record in enumerate(records)
    ]
    return Run(
        path=folder.path,
        search=search,
        trials=frame(rows, TRIAL_DTYPES),
        windows=frame((window for row in rows for window in _windows(row)), WINDOW_DTYPES),
        rank_windows=frame((window for row in rows for window in _rank_windows(row)), RANK_WINDOW_DTYPES),
        best=final_best(folder, problems),
        problems=problems,
        rank=ranking,
    )


def _current(records: list[dict[str, Any]], problems: list[str]) -> set[int]:
    """Return the positions of the records that count: the highest attempt of each trial, the last of records with equal keys."""
    highest: dict[tuple[Any, ...], int] = {}
    for record in records:
        trial = (record["study"], record["kind"], record["number"])
        highest[trial] = max(record["attempt"], highest.get(trial, 0))
    last: dict[tuple[Any, ...], int] = {}
    for index, record in enumerate(records):
        # a confirmation round is one trial with several settings, which differ in position; rounds have their own numbers
        trial = (record["study"], record["kind"], record["number"])
        key = (*trial, record["attempt"], record["round"], record["position"])
        if key in last:
            problems.append(f"{label(record)} was recorded twice; the last record is used")
        if record["attempt"] == highest[trial]:
            last[key] = index
    return set(last.values())


def _derived(record: dict[str, Any], objective: str, problems: list[str]) -> dict[str, Any]:
    derived: dict[str, Any] = {"status": status(record), "config": config_text(record)}
    if record["step_only_num_items"] is not None:
        derived["step_only_sps"] = step_only_sps(record)
    if record["copy_only_num_items"] is not None:
        derived["copy_only_sps"] = copy_only_sps(record)
    if derived["status"] == "failed" or not record["window_duration_s"]:
        return derived
    try:
        with np.errstate(all="ignore"):
            rates = {"steady": record_steady(record), "throughput": record_rate(record, objective)}
        for name, rate in rates.items():
            derived |= _rate_columns(name, rate)
    except ValueError as error:
        problems.append(f"{label(record)}: {error}; its rate was left out")
        return derived
    duration_s = record["window_duration_s"]
    derived["naive_sps"] = naive_sps(duration_s, record["window_num_items"])
    if record["window_wait_s"]:
        derived["wait_fraction"] = wait_fraction(record)
    if (waits := rank_waits(record)) is not None:
        derived["slowest_rank"] = waits.slowest
    derived["epoch_memory_bytes"] = epoch_memory_bytes(record)
    derived["change_fraction"] = record_change(record, objective)
    return derived


def _rate_columns(name: str, rate: Rate | None) -> dict[str, float]:
    if rate is None or not all(map(math.isfinite, (rate.sps, rate.low_sps, rate.high_sps))):
        raise ValueError("its windows give no finite rate")
    return {f"{name}_sps": rate.sps, f"{name}_low_sps": rate.low_sps, f"{name}_high_sps": rate.high_sps}


def _windows(row: dict[str, Any]) -> Iterable[dict[str, Any]]:
    key = {name: row[name] for name in WINDOW_KEY}
    for window in range(len(row["window_duration_s"] or ())):
        values = {name: row[f"window_{name}"] for name in OF_A_WINDOW}
        yield key | {"window": window} | {name: value[window] if value else None for name, value in values.items()}


def _rank_windows(row: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if rank_waits(row) is None:
        return
    key = {name: row[name] for name in WINDOW_KEY}
    for number, each in enumerate(row["ranks"]):
        waits = each["window_wait_s"]
        steps, items = (each.get(name) or [None] * len(waits) for name in ("window_step_s", "window_num_items"))
        for window, (wait_s, step_s, num_items) in enumerate(zip(waits, steps, items, strict=False)):
            told = {"wait_s": wait_s, "step_s": step_s, "num_items": num_items, "duration_s": row["window_duration_s"][window]}
            yield key | {"window": window, "rank": number} | told
