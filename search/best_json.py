"""What best.json says: `best_content` puts it together from the records of a run, once the answer is chosen (result.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from feedrate.analysis.best import BEST_SCHEMA
from feedrate.analysis.compat import median
from feedrate.analysis.doubts import Doubt, doubts, what_settles
from feedrate.analysis.outlook import outlook_of
from feedrate.analysis.rounds import DISTURBED_FRACTION, TIED_FRACTION, Standing
from feedrate.analysis.run import Run
from feedrate.analysis.summary import best_by_batch_size, counted, may_win, same
from feedrate.analysis.verdict import COMPUTE_BOUND_FRACTION, SHARED_FRACTION, judge
from feedrate.search.record import SearchRecord
from feedrate.trainables.config import LoaderConfig

FACTS = (
    "steady_sps", "change_fraction", "wait_fraction", "own_cpu_fraction", "num_cpus", "num_workers",
    "throttled_fraction", "steal_fraction", "psi_io_fraction",
)  # fmt: skip
"""Columns of a trial that the verdict is based on."""
FOREIGN = ("foreign_cpu_fraction", "foreign_gpu_fraction")


def best_content(run: Run, ranked: pd.DataFrame, chosen: pd.Series[Any], where: Standing | None) -> dict[str, Any]:
    """Return the content of best.json.

    Args:
        run: the run.
        ranked: its ranking.
        chosen: the row of the answer in it.
        where: the standing after the rounds; None without rounds.
    """
    rows = counted(run)
    rows = rows[rows["config"] == chosen["config"]]
    trial = rows.iloc[-1].copy()
    for name in FACTS:  # one of several measurements may have been disturbed
        trial[name] = median(rows[name])
    complete = ranked[(ranked["status"] == "complete") & may_win(run, ranked)]
    size = None if pd.isna(chosen["batch_size"]) else int(chosen["batch_size"])
    ceilings = run.ceilings_found
    ceiling_sps = ceilings.at(size)
    same_size = complete[same(complete["batch_size"], chosen["batch_size"])]
    mine = ranked[(ranked["status"] == "complete") & ranked["is_baseline"] & same(ranked["batch_size"], chosen["batch_size"])]
    record = SearchRecord.of(run)
    baseline = mine[record.disqualified.true_rates(mine)]  # the comparison needs it even if it cannot be the answer
    others = same_size[same_size["config"] != chosen["config"]]
    if where is None:
        tied = others[others["throughput_sps"] >= chosen["throughput_sps"] * (1 - TIED_FRACTION)]
    else:
        tied = others[others["config"].isin(where.tied)]
    threads = record.options.threads
    fraction = None if ceiling_sps is None else float(trial["steady_sps"]) / ceiling_sps
    facts = _facts(trial) | {"copy_only_sps": run.copies.get((size, bool(chosen["pin_memory"])))}
    verdict = judge(facts, ceiling_sps, ceilings.why_not(size))
    at_ceiling = fraction is not None and fraction >= COMPUTE_BOUND_FRACTION
    is_open = doubts(run, ranked, chosen, confirmed=where is not None, at_ceiling=at_ceiling)
    return {
        "schema": BEST_SCHEMA,
        "dataloader": config_of(chosen).to_kwargs(),
        "process": config_of(chosen).to_process(threads),
        "throughput": _throughput(chosen) | {"unit": record.workload.unit, "per": "rank" if record.world_size == 1 else "world"},
        "baseline": None if baseline.empty else _baseline(chosen, baseline.iloc[0], threads),
        "ceiling": None
        if ceiling_sps is None
        else {"step_only_samples_per_second": ceiling_sps, "fraction_of_ceiling": fraction},
        "verdict": verdict.name,
        "verdict_evidence": list(verdict.evidence),
        "memory": {"pss_bytes": _float(trial["tree_pss_bytes"]), "end_of_epoch_bytes": _float(trial["epoch_memory_bytes"])},
        "confirmed": where is not None,
        "tied_with": [config_of(row).to_kwargs() | _needs(config_of(row), threads) for _, row in tied.iterrows()],
        "best_by_batch_size": {
            str(int(row["batch_size"])): _entry(row, threads) | _throughput(row)
            for _, row in best_by_batch_size(run, ranked).iterrows()
            if not pd.isna(row["batch_size"])
        },
        "scope": _scope(record, trial),
        "measured_on": _measured_on(record, trial),
        "what_if": outlook_of(run, chosen).to_json(),
        "workload": record.workload.to_json() | {"epoch_samples": _whole(trial["epoch_samples"])},
        "search": _searched(run, record, where, is_open),
    }


def _scope(record: SearchRecord, trial: pd.Series[Any]) -> dict[str, Any]:
    """Return how much of a host the measured ranks had: their CPUs, and what else ran there."""
    placement = record.placement
    return {
        "ranks_per_host": record.workload.num_ranks,
        "world_size": record.world_size,
        "cpus_per_rank": _each(placement.cpus, record.workload.num_ranks),
        "slowest_rank": _whole(trial["slowest_rank"]),
        "exclusive_host": all((_float(trial[name]) or 0.0) < SHARED_FRACTION for name in FOREIGN)
        and placement.trials_per_host == 1,
        "trials_per_host": placement.trials_per_host,
        **{name: _float(trial[name]) for name in FOREIGN},
        "cache": _text(trial["cache_state"]),
    }


def _each(num_cpus: int | None, num_ranks: int) -> float | None:
    """Return the CPUs of each rank; a whole number for one rank."""
    return num_cpus if num_cpus is None or num_ranks == 1 else num_cpus / num_ranks


def _measured_on(record: SearchRecord, trial: pd.Series[Any]) -> dict[str, Any]:
    """Return the machine and the software on it."""
    return {
        "hostname": _text(trial["hostname"]),
        "device": _text(trial["device"]),
        "device_name": _text(trial["device_name"]),
        "num_cpus": record.hardware.num_cpus,
        "cpu_model": record.hardware.cpu_model,
        "start_method": _text(trial["start_method"]),
        "versions": dict(record.versions),
    }


def _searched(run: Run, record: SearchRecord, where: Standing | None, is_open: Sequence[Doubt]) -> dict[str, Any]:
    """Return how the setting was found, and how certain it is that this setting is the best."""
    options, disqualified = record.options, record.disqualified
    return {
        "study": record.study,
        "objective": record.objective,
        "amp": options.amp,
        "compile": options.compile,
        "disqualified": None if disqualified.is_nothing else disqualified.to_json(),
        "num_trials": int((run.latest["kind"] != "confirm").sum()),
        "num_failed": int((run.failures["kind"] != "confirm").sum()),
        "num_rounds": int(run.latest["round"].nunique()),
        "num_round_hosts": int(run.latest[run.latest["kind"] == "confirm"]["host_id"].nunique()),
        "num_hosts": int(run.latest["host_id"].nunique()),
        "num_measurements": int(run.latest["throughput_sps"].notna().sum()),
        "num_disturbed": int((run.latest["foreign_cpu_fraction"] >= DISTURBED_FRACTION).sum()),
        **{f"most_{name}": _float(run.latest[name].max()) for name in FOREIGN},
        "unconfirmed_because": record.unconfirmed_because if where is None else None,
        "set_aside": [host.to_json() for host in record.set_aside],
        "undecided": [] if where is None else list(where.undecided),
        "open": [each.text for each in is_open],
        "settle": what_settles(is_open),
        "created_unix_s": record.created_unix_s,
    }


def _facts(trial: pd.Series[Any]) -> dict[str, Any]:
    """Return the columns FACTS of a trial, and its cache state; an unknown value is None."""
    return {name: _float(trial[name]) for name in FACTS} | {"cache_state": _text(trial["cache_state"])}


def config_of(row: pd.Series[Any]) -> LoaderConfig:
    """Return the setting in a row of a ranking or of `Run.trials`."""
    names = LoaderConfig.__dataclass_fields__
    fields: dict[str, Any] = {name: None if pd.isna(row[name]) else row[name] for name in names}
    for name in ("num_workers", "batch_size", "prefetch_factor", "trainer_cpus"):
        fields[name] = None if fields[name] is None else int(fields[name])
    for name in ("pin_memory", "persistent_workers", "in_order"):
        fields[name] = bool(fields[name])
    return LoaderConfig(**fields)


def _entry(row: pd.Series[Any], threads: int | None) -> dict[str, Any]:
    return {"dataloader": config_of(row).to_kwargs()} | _needs(config_of(row), threads)


def _needs(config: LoaderConfig, threads: int | None) -> dict[str, Any]:
    process = config.to_process(threads)
    return {"process": process} if process else {}


def _throughput(row: pd.Series[Any]) -> dict[str, Any]:
    low, high = float(row["throughput_low_sps"]), float(row["throughput_high_sps"])
    return {"samples_per_second": float(row["throughput_sps"]), "ci95": [low, high]}


def _baseline(chosen: pd.Series[Any], baseline: pd.Series[Any], threads: int | None) -> dict[str, Any]:
    return {
        **_entry(baseline, threads),
        "samples_per_second": float(baseline["throughput_sps"]),
        "speedup": float(chosen["speedup"]),
        "speedup_ci95": [float(chosen["speedup_low"]), float(chosen["speedup_high"])],
    }


def _float(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _whole(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _text(value: Any) -> str | None:
    return None if pd.isna(value) else str(value)
