"""The settings of a run, best first: replicate records of one setting pooled, compared with the baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import pandas as pd

from feedrate.analysis.ceilings import load_fraction
from feedrate.analysis.disqualified import Disqualified
from feedrate.analysis.estimate import LEAST_HEADROOM_FRACTION, Rate, gpu_headroom_fraction
from feedrate.analysis.rounds import MIN_ROUNDS, SOON_ROUNDS, Comparison, Finalist, Standing, rounds_of, standing
from feedrate.analysis.run import Run
from feedrate.analysis.tables import TRIAL_DTYPES, frame

SETTING = (
    "batch_size", "num_workers", "prefetch_factor", "pin_memory", "persistent_workers", "multiprocessing_context",
    "in_order", "sharing_strategy", "trainer_cpus",
)  # fmt: skip
COST = ("num_workers", "prefetch_factor", "tree_pss_bytes")
"""What makes a setting cheaper than another, compared in this order."""
WELL_KNOWN_FRACTION = 0.2
"""Half-width, as a fraction, from which on a trial that was stopped early says nothing against one that ran to its end."""
KNEE_FRACTION = 0.95
_NAMES = (
    "config", *SETTING, "status", "throughput_sps", "throughput_low_sps", "throughput_high_sps", "num_trials",
    "num_hosts", "num_rounds", "is_baseline", "speedup", "speedup_low", "speedup_high", "wait_fraction", "tree_pss_bytes",
    "gpu_headroom_fraction", "settled", "change_fraction", "load_fraction",
)  # fmt: skip
_OTHER = {"settled": "boolean", "num_trials": "Int64", "num_hosts": "Int64", "num_rounds": "Int64", "is_baseline": "bool"}
RANKING_DTYPES = {name: _OTHER.get(name) or TRIAL_DTYPES.get(name, "float64") for name in _NAMES}


def ranking(run: Run) -> pd.DataFrame:
    """One row a setting with a rate, the fastest first; a setting that only ever failed has no row.

    `status` is complete where a trial of the setting ran to its end; then only such trials are pooled, else the ones
    that were stopped early. A setting that MIN_ROUNDS confirmation rounds or more measured (`num_rounds`) has the rate of
    these rounds alone, because the reading that made it a finalist is flattered by luck. `num_hosts` above 1 says that
    different machines are pooled. `speedup` compares with the baseline at the same batch size, within rounds where both
    were in them, and is missing where there is none. `tree_pss_bytes` is the largest seen. `settled` is False where a
    measurement that counts ended before its rate had stopped drifting, or saw too few windows. `change_fraction` is the median
    change of rates that had not stopped (0 where they had), `load_fraction` the median of what others took of the CPUs, or of the GPU.

    Example:
        >>> from feedrate.analysis import load_run, ranking
        >>> ranked = ranking(load_run("docs/example-run"))
        >>> bool(ranked["throughput_sps"].is_monotonic_decreasing)
        True
    """
    return _ranking(run).copy()


@lru_cache(maxsize=2)
def _ranking(run: Run) -> pd.DataFrame:
    """The same, made once for the tables of a report; a run is known by its identity, and never changes."""
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
    """The measurements that rows of `ranking` rest on where they ran to the end: of settings in MIN_ROUNDS rounds or more,
    those in rounds."""
    complete = run.latest[(run.latest["status"] == "complete") & run.latest["throughput_sps"].notna()]
    comparison = comparison_of(run)
    confirmed = [name for name in comparison.settings if comparison.num_rounds(name) >= MIN_ROUNDS]
    return complete[~complete["config"].isin(confirmed) | (complete["kind"] == "confirm")]


def comparison_of(run: Run) -> Comparison:
    """What the confirmation rounds of a run say."""
    confirmed = run.latest[run.latest["kind"] == "confirm"].dropna(subset=["throughput_sps", "round"])
    rows = confirmed.to_dict("records")
    return Comparison(rounds_of((row["config"], row["throughput_sps"], row) for row in rows))


def best_by_batch_size(run: Run, ranked: pd.DataFrame | None = None) -> pd.DataFrame:
    """The first row of `ranking` at each batch size, ordered by batch size.

    Settings that ran to the end go before those that were stopped early, as at another batch size something was faster, unless
    such a one is faster for sure.

    `ranked` is the ranking where it was made already.

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
    """The smallest batch size whose best rate is within 5 % of the highest one; larger ones take memory for little.

    Args:
        by_batch_size: as `best_by_batch_size` gives it.

    Returns:
        None where fewer than two batch sizes were measured.
    """
    known = by_batch_size.dropna(subset=["batch_size"])
    if len(known) < 2:
        return None
    return knee_of({int(size): float(sps) for size, sps in zip(known["batch_size"], known["throughput_sps"], strict=True)})


def knee_of(sps: Mapping[int, float]) -> int:
    """The same of batch size -> items per second."""
    return min(size for size, rate in sps.items() if rate >= KNEE_FRACTION * max(sps.values()))


def may_win(run: Run, ranked: pd.DataFrame) -> pd.Series[bool]:
    """Which rows can be the answer: not those whose workers repeat data (`disqualified` in search.json), nor those that
    leave less than a tenth of the accelerator's memory."""
    return Disqualified.of(run.search).allowed(ranked) & ~(ranked["gpu_headroom_fraction"] < LEAST_HEADROOM_FRACTION)


def same(column: pd.Series[Any], value: Any) -> pd.Series[bool]:
    """Which rows of a column have a value, which may be missing."""
    return column.isna() if pd.isna(value) else (column == value).fillna(False).astype(bool)


def standing_of(run: Run, ranked: pd.DataFrame) -> Standing | None:
    """Where the settings stand that were in confirmation rounds and may be the answer; None where none was in enough."""
    finalists = [
        Finalist(
            name=row["config"],
            batch_size=None if pd.isna(row["batch_size"]) else int(row["batch_size"]),
            cost=tuple(0.0 if pd.isna(row[name]) else float(row[name]) for name in COST),
        )
        for _, row in ranked[(ranked["num_rounds"] > 0) & may_win(run, ranked)].iterrows()
    ]
    return standing(comparison_of(run), finalists)


def pool(rates: Sequence[Rate]) -> Rate:
    """One rate from fresh starts of one setting, weighted by their relative precision.

    Where the starts differ by more than their intervals explain, the interval is widened by that ratio (Birge).
    """
    errors = [max((rate.high_sps - rate.sps) / rate.sps, 1e-9) for rate in rates]
    weights = [error**-2 for error in errors]
    mean = sum(weight * rate.sps for weight, rate in zip(weights, rates, strict=True)) / sum(weights)
    half = mean / math.sqrt(sum(weights))
    if len(rates) > 1:
        misfit = sum(weight * (1.96 * (rate.sps / mean - 1)) ** 2 for weight, rate in zip(weights, rates, strict=True))
        half *= math.sqrt(max(1.0, misfit / (len(rates) - 1)))
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
    }


def _known(records: list[Mapping[Any, Any]], name: str) -> list[Any]:
    return [record[name] for record in records if record[name] is not None]


def _speedup(row: dict[str, Any], baseline: dict[str, Any], comparison: Comparison) -> dict[str, float]:
    """The ratio with its interval: within rounds; where there are none, the errors of the two are taken as independent."""
    ratio = row["throughput_sps"] / baseline["throughput_sps"]
    if row is baseline:
        return {"speedup": 1.0, "speedup_low": 1.0, "speedup_high": 1.0}
    paired = comparison.ratio(row["config"], baseline["config"])
    if min(row["num_rounds"], baseline["num_rounds"]) >= SOON_ROUNDS and math.isfinite(paired.high_sps):
        return {"speedup": paired.sps, "speedup_low": paired.low_sps, "speedup_high": paired.high_sps}
    errors = [each["throughput_high_sps"] / each["throughput_sps"] - 1 for each in (row, baseline)]
    half = ratio * math.hypot(*errors)
    return {"speedup": ratio, "speedup_low": max(ratio - half, 0.0), "speedup_high": ratio + half}
