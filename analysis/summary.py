"""The settings of a run, the fastest first: replicate records of a setting are pooled and compared with the baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import pandas as pd

from feedrate.analysis.ceilings import load_fraction
from feedrate.analysis.disqualified import Disqualified
from feedrate.analysis.estimate import LEAST_HEADROOM_FRACTION, Rate, gpu_headroom_fraction, used_cpu_item_s, widening
from feedrate.analysis.rounds import MIN_ROUNDS, SOON_ROUNDS, Comparison, Finalist, Standing, rounds_of, standing
from feedrate.analysis.run import Run
from feedrate.analysis.setting_cost import SettingCost
from feedrate.analysis.tables import TRIAL_DTYPES, frame

SETTING = (
    "batch_size", "num_workers", "prefetch_factor", "pin_memory", "persistent_workers", "multiprocessing_context",
    "in_order", "sharing_strategy", "trainer_cpus",
)  # fmt: skip
WELL_KNOWN_FRACTION = 0.2
"""A trial that was stopped early counts against a complete one only if its half-width, as a fraction of the rate, is below this."""
KNEE_FRACTION = 0.95
_NAMES = (
    "config", *SETTING, "status", "throughput_sps", "throughput_low_sps", "throughput_high_sps", "num_trials",
    "num_hosts", "num_rounds", "is_baseline", "speedup", "speedup_low", "speedup_high", "wait_fraction", "tree_pss_bytes",
    "gpu_headroom_fraction", "settled", "change_fraction", "load_fraction", "cpu_item_s",
)  # fmt: skip
_OTHER = {"settled": "boolean", "num_trials": "Int64", "num_hosts": "Int64", "num_rounds": "Int64", "is_baseline": "bool"}
RANKING_DTYPES = {name: _OTHER.get(name) or TRIAL_DTYPES.get(name, "float64") for name in _NAMES}


def ranking(run: Run) -> pd.DataFrame:
    """Return one row per setting that has a rate, the fastest first; a setting that always failed has no row.

    `status` is complete if a trial of the setting ran to its end; then only such trials are pooled, otherwise those that
    were stopped early. If MIN_ROUNDS confirmation rounds or more measured a setting (`num_rounds`), its rate comes from these
    rounds alone, because the measurement that made it a finalist is flattered by luck. If `num_hosts` exceeds 1, different
    machines are pooled. `speedup` compares with the baseline at the same batch size, within rounds if both settings were in
    them; it is missing if there is no such baseline. `tree_pss_bytes` is the largest value. `settled` is False if a measurement
    that counts ended before its rate had stopped drifting, or has too few windows. `change_fraction` is the median change of
    rates that had not stopped changing (0 for those that had). `load_fraction` is the median share of the CPUs, or of the GPU,
    that others took. `cpu_item_s` is the median of the CPU seconds that training process and workers used per item; it is missing for
    settings that were not in MIN_ROUNDS rounds, because a single trial knows it too badly to compare settings.

    Example:
        >>> from feedrate.analysis import load_run, ranking
        >>> ranked = ranking(load_run("docs/example-run"))
        >>> bool(ranked["throughput_sps"].is_monotonic_decreasing)
        True
    """
    return _ranking(run).copy()


@lru_cache(maxsize=2)
def _ranking(run: Run) -> pd.DataFrame:
    """Make the ranking once for all tables of a report; the cache identifies a run by its identity, and a run never changes."""
    comparison = comparison_of(run)
    measured = run.latest.dropna(subset=["throughput_sps"])
    records: dict[str, list[Mapping[Any, Any]]] = {}
    for record in measured.astype(object).where(measured.notna(), None).to_dict("records"):
        records.setdefault(record["config"], []).append(record)
    rows = [_pooled(group, comparison) for group in records.values()]
    baselines: dict[int | None, dict[str, Any]] = {}
    for row in rows:
        if row["is_baseline"]:
            baselines.setdefault(row["batch_size"], row)
    for row in rows:
        if row["batch_size"] in baselines:
            row |= _speedup(row, baselines[row["batch_size"]], comparison)
    rows.sort(key=lambda row: -row["throughput_sps"])
    return frame(rows, RANKING_DTYPES)


def counted(run: Run) -> pd.DataFrame:
    """Return the complete measurements on which rows of `ranking` are based.

    For settings in MIN_ROUNDS rounds or more, these are only the measurements in rounds.
    """
    complete = run.latest[(run.latest["status"] == "complete") & run.latest["throughput_sps"].notna()]
    comparison = comparison_of(run)
    confirmed = [name for name in comparison.settings if comparison.num_rounds(name) >= MIN_ROUNDS]
    return complete[~complete["config"].isin(confirmed) | (complete["kind"] == "confirm")]


def comparison_of(run: Run) -> Comparison:
    """Return the comparison of settings over the confirmation rounds of a run."""
    confirmed = run.latest[run.latest["kind"] == "confirm"].dropna(subset=["throughput_sps", "round"])
    rows = confirmed.to_dict("records")
    return Comparison(rounds_of((row["config"], row["throughput_sps"], row) for row in rows))


def best_by_batch_size(run: Run, ranked: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the best row of `ranking` at each batch size, ordered by batch size.

    A setting that ran to the end comes before one that was stopped early, which may have been stopped because another batch size
    was faster; unless the stopped one is faster with 95 % confidence.

    `ranked` is the ranking, if already made.

    Example:
        >>> from feedrate.analysis import best_by_batch_size, load_run
        >>> best = best_by_batch_size(load_run("docs/example-run"))
        >>> bool(best["batch_size"].is_unique)
        True
    """
    ranked = ranking(run) if ranked is None else ranked
    ranked = ranked[may_win(run, ranked)]
    is_complete = ranked["status"] == "complete"
    ended = ranked["throughput_high_sps"].where(is_complete).groupby(ranked["batch_size"], dropna=False).transform("first")
    is_known = ranked["throughput_high_sps"] < (1 + WELL_KNOWN_FRACTION) * ranked["throughput_sps"]
    order = ranked.assign(late=~is_complete & ~(is_known & (ranked["throughput_low_sps"] > ended)))
    best = order.sort_values("late", kind="stable").drop(columns="late").drop_duplicates("batch_size")
    return best.sort_values("batch_size", kind="stable").reset_index(drop=True)


def knee(by_batch_size: pd.DataFrame) -> int | None:
    """Return the smallest batch size whose best rate is within 5 % of the highest; larger ones gain little for their memory.

    Args:
        by_batch_size: the result of `best_by_batch_size`.

    Returns:
        None if fewer than two batch sizes were measured.
    """
    known = by_batch_size.dropna(subset=["batch_size"])
    if len(known) < 2:
        return None
    return knee_of({int(size): float(sps) for size, sps in zip(known["batch_size"], known["throughput_sps"], strict=True)})


def knee_of(sps: Mapping[int, float]) -> int:
    """Do the same as `knee` for a mapping of batch size -> items per second."""
    return min(size for size, rate in sps.items() if rate >= KNEE_FRACTION * max(sps.values()))


def may_win(run: Run, ranked: pd.DataFrame) -> pd.Series[bool]:
    """Return which rows can be the answer.

    Excluded are settings whose workers repeat data (`disqualified` in search.json), and settings that leave less than a tenth
    of the accelerator's memory free.
    """
    return Disqualified.of(run.search).allowed(ranked) & ~(ranked["gpu_headroom_fraction"] < LEAST_HEADROOM_FRACTION)


def same(column: pd.Series[Any], value: Any) -> pd.Series[bool]:
    """Return which rows of a column have a value; the value may be missing (NA)."""
    return column.isna() if pd.isna(value) else (column == value).fillna(False).astype(bool)


def standing_of(run: Run, ranked: pd.DataFrame) -> Standing | None:
    """Return the standing of the settings that were in rounds and may be the answer; None if none was in enough rounds."""
    finalists = [
        Finalist(
            name=row["config"],
            batch_size=None if pd.isna(row["batch_size"]) else int(row["batch_size"]),
            cost=cost_of(row),
        )
        for _, row in ranked[(ranked["num_rounds"] > 0) & may_win(run, ranked)].iterrows()
    ]
    return standing(comparison_of(run), finalists)


def cost_of(row: pd.Series[Any]) -> SettingCost:
    """Return what the setting of a row of `ranking` takes from the machine."""

    def known(name: str) -> float:
        return 0.0 if pd.isna(row[name]) else float(row[name])

    return SettingCost(
        num_workers=int(known("num_workers")),
        prefetch_factor=int(known("prefetch_factor")),
        memory_bytes=known("tree_pss_bytes"),
        cpu_item_s=known("cpu_item_s") or None,
    )


def pool(rates: Sequence[Rate]) -> Rate:
    """Pool the rates of several fresh starts of one setting, weighted by their relative precision.

    If the starts differ by more than their intervals explain, the interval is widened by that ratio (Birge). One rate keeps both sides of its
    interval, which is longer on one side if the rate was still changing.
    """
    if len(rates) == 1:
        return rates[0]
    errors = [max((rate.high_sps - rate.sps) / rate.sps, 1e-9) for rate in rates]
    weights = [error**-2 for error in errors]
    mean = sum(weight * rate.sps for weight, rate in zip(weights, rates, strict=True)) / sum(weights)
    half = widening([rate.sps / mean - 1 for rate in rates], errors) * mean / math.sqrt(sum(weights))
    return Rate(sps=mean, low_sps=max(mean - half, 0.0), high_sps=mean + half)


def _pooled(records: list[Mapping[Any, Any]], comparison: Comparison) -> dict[str, Any]:
    complete = [record for record in records if record["status"] == "complete"]
    used = complete or records
    num_rounds = comparison.num_rounds(records[0]["config"])
    if num_rounds >= MIN_ROUNDS:
        used = [record for record in complete if record["kind"] == "confirm"]
    bounds = ("throughput_sps", "throughput_low_sps", "throughput_high_sps")
    rates = [[record[name] for name in bounds] for record in used]
    rate = pool([Rate(sps=sps, low_sps=low_sps, high_sps=high_sps) for sps, low_sps, high_sps in rates])
    headroom = [each for each in map(gpu_headroom_fraction, records) if each is not None]
    if num_rounds >= MIN_ROUNDS:
        rate = comparison.rate(records[0]["config"]) or rate
    return {name: used[0][name] for name in ("config", *SETTING, "status")} | {
        "throughput_sps": rate.sps,
        "throughput_low_sps": rate.low_sps,
        "throughput_high_sps": rate.high_sps,
        "num_trials": len(used),
        "num_hosts": max(len(set(_known(used, "host_id"))), 1),
        "num_rounds": num_rounds,
        "is_baseline": any(record["origin"] == "baseline" for record in records),
        "wait_fraction": statistics.median(_known(used, "wait_fraction") or [math.nan]),
        "tree_pss_bytes": max(_known(used, "tree_pss_bytes"), default=None),
        "gpu_headroom_fraction": min(headroom, default=math.nan),
        "settled": all(_known(used, "settled")) if _known(used, "settled") else None,
        "change_fraction": statistics.median(_known(used, "change_fraction") or [math.nan]),
        "load_fraction": statistics.median(map(load_fraction, used)),
        "cpu_item_s": _cpu_item_s(used),
    }


def _cpu_item_s(records: list[Mapping[Any, Any]]) -> float:
    each = [used_cpu_item_s(record, record["steady_sps"]) for record in records]
    known = [cpu_s for cpu_s in each if cpu_s is not None]
    return statistics.median(known) if len(known) >= MIN_ROUNDS else math.nan


def _known(records: list[Mapping[Any, Any]], name: str) -> list[Any]:
    return [record[name] for record in records if record[name] is not None]


def _speedup(row: dict[str, Any], baseline: dict[str, Any], comparison: Comparison) -> dict[str, float]:
    """Return the speed-up with its interval: within rounds if possible; otherwise the errors of the two are taken as independent."""
    ratio = row["throughput_sps"] / baseline["throughput_sps"]
    if row is baseline:
        return {"speedup": 1.0, "speedup_low": 1.0, "speedup_high": 1.0}
    paired = comparison.ratio(row["config"], baseline["config"])
    if min(row["num_rounds"], baseline["num_rounds"]) >= SOON_ROUNDS and math.isfinite(paired.high_sps):
        return {"speedup": paired.sps, "speedup_low": paired.low_sps, "speedup_high": paired.high_sps}
    errors = [each["throughput_high_sps"] / each["throughput_sps"] - 1 for each in (row, baseline)]
    half = ratio * math.hypot(*errors)
    return {"speedup": ratio, "speedup_low": max(ratio - half, 0.0), "speedup_high": ratio + half}
