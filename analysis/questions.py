"""Questions about a run, each answered by one table: `effects`, `pareto`, `time_shares`, `noise`, `failures_by_reason`.

`summary.ranking` (which setting is best, how certain) and `summary.best_by_batch_size` answer two more. Column names contain units.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from feedrate.analysis.compat import median
from feedrate.analysis.rounds import DISTURBED_FRACTION
from feedrate.analysis.run import Run
from feedrate.analysis.schema import LOAD_COSTS, SAMPLE_TIMES
from feedrate.analysis.setting import setting_text
from feedrate.analysis.summary import SETTING, counted, may_win, ranking, same
from feedrate.analysis.tables import frame

NOISY = ("foreign_cpu_fraction", "throttled_fraction", "steal_fraction", "psi_io_fraction")


def effects(run: Run) -> pd.DataFrame:
    """Return how much each dimension matters: the best setting that was found with each of its values, one row per value.

    A search tries mostly settings that are fast, so averages over its trials say more about the search than about the
    dimension. The best setting *with* a value does not have this problem, if some settings were tried with it (`num_settings`).

    Each row is compared with the answer (best.json), or with the fastest setting while there is no best.json. `fraction_of_best`
    is the row's rate over that setting's rate; it may exceed 1 if the row's setting was not measured again in rounds.
    `differs_in` is the number of dimensions in which the two differ; 1 is a clean comparison. Rows of all dimensions except
    batch_size are at that setting's batch size.

    Example:
        >>> from feedrate.analysis import effects, load_run
        >>> table = effects(load_run("docs/example-run"))
        >>> list(table.columns[:4])
        ['dimension', 'value', 'config', 'throughput_sps']
        >>> bool((table["differs_in"] == 0).any())
        True
    """
    ranked = ranking(run)
    able = ranked[(ranked["status"] == "complete") & may_win(run, ranked)]
    rows: list[dict[str, Any]] = []
    if not able.empty:
        answer = able["config"] == ("" if run.best is None else setting_text(run.best))
        best = able[answer].iloc[0] if answer.any() else able.iloc[0]
        same_size = able[same(able["batch_size"], best["batch_size"])]
        for name in SETTING:
            rows += _values(name, able if name == "batch_size" else same_size, best)
    dtypes = {
        "dimension": "str", "value": "str", "config": "str", "throughput_sps": "float64", "throughput_low_sps": "float64",
        "throughput_high_sps": "float64", "fraction_of_best": "float64", "num_settings": "Int64", "differs_in": "Int64",
    }  # fmt: skip
    return frame(rows, dtypes)


def _values(name: str, settings: pd.DataFrame, best: pd.Series[Any]) -> list[dict[str, Any]]:
    """Return a row for each value of one dimension; no rows if all settings have the same value."""
    if name in ("prefetch_factor", "persistent_workers", "multiprocessing_context"):  # these have no meaning without workers
        settings = settings[settings["num_workers"] > 0]
    if settings[name].nunique(dropna=False) < 2:
        return []
    rows = []
    for value, group in settings.groupby(name, dropna=False, sort=True):
        first = group.iloc[0]
        rows.append({
            "dimension": name,
            "value": "none" if pd.isna(value) else str(value),
            "num_settings": len(group),
            "fraction_of_best": float(first["throughput_sps"]) / float(best["throughput_sps"]),
            "differs_in": sum(not _same(first[other], best[other]) for other in SETTING),
            **{column: first[column] for column in ("config", "throughput_sps", "throughput_low_sps", "throughput_high_sps")},
        })  # fmt: skip
    return rows


def pareto(run: Run) -> pd.DataFrame:
    """Return throughput against memory: the settings that no other setting beats in both, the smallest memory first.

    Memory is `tree_pss_bytes`, that of trainer and workers together. The rows are rows of `ranking`.

    Example:
        >>> from feedrate.analysis import load_run, pareto
        >>> front = pareto(load_run("docs/example-run"))
        >>> bool(front["throughput_sps"].is_monotonic_increasing)
        True
    """
    ranked = ranking(run)
    able = ranked[(ranked["status"] == "complete") & may_win(run, ranked)].dropna(subset=["tree_pss_bytes"])
    ordered = able.sort_values(["tree_pss_bytes", "throughput_sps"], ascending=[True, False], kind="stable")
    fastest_below = ordered["throughput_sps"].cummax().shift(fill_value=-math.inf)
    return ordered[ordered["throughput_sps"] > fastest_below].reset_index(drop=True)


def time_shares(run: Run) -> pd.DataFrame:
    """Return where the time goes with each setting that ran to its end, the fastest setting first.

    Shares of the time inside an epoch: `wait_fraction` is the time in which the step waits for a batch. `compute_fraction` is
    the time that the step takes alone: the rate divided by that of the step alone. `copy_fraction` is the time that copying
    batches to the accelerator takes alone: the rate divided by that of the copy alone; missing on a CPU. `slowed_fraction` is
    the rest, which is lost because step and loading slow each other down. `compute_fraction` and `slowed_fraction` are missing
    if the ceiling is not known (ceilings.py).

    `boundary_fraction` is the share of a whole epoch that starting it costs. `startup_s` is the time from `iter(loader)` to the
    first batch; `setup_s` is the time for imports, model and warm-up, before any loading. Unknown values are missing.

    Example:
        >>> from feedrate.analysis import load_run, time_shares
        >>> table = time_shares(load_run("docs/example-run"))
        >>> bool((table["wait_fraction"] + table["compute_fraction"] <= 1.05).all())
        True
    """
    order = {config: place for place, config in enumerate(ranking(run)["config"])}
    ceilings = run.ceilings
    rows = []
    for config, group in counted(run).groupby("config", sort=False):
        first = group.iloc[0]
        size = None if pd.isna(first["batch_size"]) else int(first["batch_size"])
        steady = float(median(group["steady_sps"]))
        ceiling, copy = ceilings.get(size), run.copies.get((size, bool(first["pin_memory"])))
        boundary_s, epoch = median(group["boundary_s"]), first["epoch_samples"]
        row: dict[str, Any] = {
            "config": config,
            "wait_fraction": median(group["wait_fraction"]),
            "compute_fraction": None if ceiling is None else steady / ceiling,
            "copy_fraction": None if copy is None else steady / copy,
            "boundary_fraction": None if pd.isna(epoch) or pd.isna(boundary_s) else boundary_s / (boundary_s + float(epoch) / steady),
            "startup_s": median(group["iter_s"] + group["first_batch_s"]),
            "setup_s": median(group["setup_s"]),
            "num_trials": len(group),
        }
        if ceiling is not None and not pd.isna(row["wait_fraction"]):
            known = row["wait_fraction"] + row["compute_fraction"] + (row["copy_fraction"] or 0.0)
            row["slowed_fraction"] = max(1.0 - known, 0.0)
        rows.append(row)
    rows.sort(key=lambda row: order[row["config"]])
    names = ("wait_fraction", "compute_fraction", "copy_fraction", "slowed_fraction", "boundary_fraction", "startup_s", "setup_s")
    return frame(rows, {"config": "str", **dict.fromkeys(names, "float64"), "num_trials": "Int64"})


def load_costs(run: Run) -> pd.DataFrame:
    """Return what loading an item costs in the process that loads it, with each setting that ran to its end, the fastest setting first.

    `load_item_s` is the time of fetching and collating: `load_cpu_item_s` in which the thread computes, `load_delay_item_s` in which it could compute and
    has no CPU, and `load_wait_item_s` in which it waits for something else (storage, a network, a lock). `collate_item_s` of it is spent in collate_fn.
    `handover_cpu_item_s` is CPU time of a worker's other threads, which `load_item_s` does not include: torch hands batches over in one of them. `batch_bytes` are those of a batch's tensors.
    `sample_p50_s`, `sample_p90_s`, `sample_p99_s` and `sample_max_s` are the time of a sample in the dataset. `sample_correlation` compares the times of
    consecutive samples: near 0 if slow samples are scattered, near 1 if they come in clusters. Settings whose processes could not be timed have no row:
    spawned workers, and runs that were recorded before these columns existed.

    Example:
        >>> from feedrate.analysis import load_costs, load_run
        >>> list(load_costs(load_run("docs/example-run")).columns[:3])
        ['config', 'load_item_s', 'load_cpu_item_s']
    """
    order = {config: place for place, config in enumerate(ranking(run)["config"])}
    rows = []
    columns = (*LOAD_COSTS, "batch_bytes", *SAMPLE_TIMES)
    for config, group in counted(run).dropna(subset=["load_item_s"]).groupby("config", sort=False):
        row: dict[str, Any] = {"config": config, **{name: median(group[name].astype("float64")) for name in columns}, "num_trials": len(group)}
        waits_s = row["load_item_s"] - row["load_cpu_item_s"] - row["load_delay_item_s"]
        row["load_wait_item_s"] = waits_s if pd.isna(waits_s) else max(waits_s, 0.0)
        rows.append(row)
    rows.sort(key=lambda row: order[row["config"]])
    names = (*columns[:3], "load_wait_item_s", *columns[3:])
    return frame(rows, {"config": "str", **dict.fromkeys(names, "float64"), "num_trials": "Int64"})


def noise(run: Run) -> pd.DataFrame:
    """Return how noisy each machine was, one row per host.

    `window_sd_fraction` is how much the windows of one trial differ (standard deviation over mean; median over trials).
    `run_sd_fraction` is how much fresh starts of one setting differ within rounds; it is missing without rounds.
    `num_disturbed` counts measurements during which other processes took a tenth of the CPUs or more. `clock_off_s` is by how
    much, at least, the host's clock is ahead of the driver's (below 0: behind); 0 if they may agree. The times of a run are
    the driver's, so the difference changes nothing. The other columns are medians and maxima of the kernel's figures.

    Example:
        >>> from feedrate.analysis import load_run, noise
        >>> table = noise(load_run("docs/example-run"))
        >>> int(table["num_measurements"].sum()) > 0
        True
    """
    measured = run.latest[run.latest["throughput_sps"].notna()]
    spread = _window_spread(run)
    rows = []
    for host, group in measured.groupby("host_id", dropna=False, sort=True):
        row: dict[str, Any] = {
            "host_id": None if pd.isna(host) else str(host),
            "hostname": group["hostname"].dropna().iloc[0] if group["hostname"].notna().any() else None,
            "num_measurements": len(group),
            "num_disturbed": int((group["foreign_cpu_fraction"] >= DISTURBED_FRACTION).sum()),
            "window_sd_fraction": median(spread.reindex(group.index)),
            "run_sd_fraction": _run_spread(group),
            "clock_off_s": _clock_off_s(group),
        }
        for name in NOISY:
            row |= {f"median_{name}": median(group[name]), f"max_{name}": group[name].max()}
        rows.append(row)
    floats = ("window_sd_fraction", "run_sd_fraction", "clock_off_s", *(f"{kind}_{name}" for name in NOISY for kind in ("median", "max")))
    counts = {"num_measurements": "Int64", "num_disturbed": "Int64"}
    return frame(rows, {"host_id": "str", "hostname": "str", **counts, **dict.fromkeys(floats, "float64")})


def _window_spread(run: Run) -> pd.Series[float]:
    """Return standard deviation over mean of the rates of each trial's windows, by row of `Run.trials`; missing below 3 windows."""
    key = ["study", "kind", "number", "attempt", "position"]
    windows = run.windows.assign(sps=run.windows["num_items"] / run.windows["duration_s"])
    rates = windows.groupby(key, dropna=False)["sps"].agg(["std", "mean", "count"]).reset_index()
    rates["spread"] = (rates["std"] / rates["mean"]).where(rates["count"] >= 3)
    joined = run.trials[key].merge(rates[[*key, "spread"]], on=key, how="left")
    return pd.Series(joined["spread"].to_numpy(dtype=float), index=run.trials.index)


def _clock_off_s(measured: pd.DataFrame) -> float:
    """Return the least difference between the clocks of host and driver that explains the recorded times.

    A measurement begins on its host after the driver started the trial, and ends before the driver learns of its end. Only
    times that contradict this show a difference.
    """
    least = (measured["host_ended_unix_s"] - measured["finished_unix_s"]).max()
    most = (measured["host_began_unix_s"] - measured["started_unix_s"]).min()
    if pd.isna(least) or pd.isna(most):
        return 0.0
    return float(max(least, 0.0) + min(most, 0.0))


def _run_spread(measured: pd.DataFrame) -> float | None:
    """Return the standard deviation of log(rate) in the rounds of one host, without the effects of setting and round."""
    rounds = measured[(measured["kind"] == "confirm") & measured["round"].notna()]
    if rounds["round"].nunique() < 2 or rounds["config"].nunique() < 2:
        return None
    logs = np.log(rounds["throughput_sps"].to_numpy(dtype=float))
    columns = pd.get_dummies(rounds[["config", "round"]].astype(str)).to_numpy(dtype=float)
    fit, _, rank, _ = np.linalg.lstsq(columns, logs, rcond=None)
    left = len(logs) - int(rank)
    return float(math.sqrt(((logs - columns @ fit) ** 2).sum() / left)) if left > 0 else None


def failures_by_reason(run: Run) -> pd.DataFrame:
    """Return what failed and why: failures of the same kind, phase and message in one row, the most frequent first.

    Example:
        >>> from feedrate.analysis import failures_by_reason, load_run
        >>> list(failures_by_reason(load_run("docs/example-run")).columns)
        ['failure_kind', 'failure_phase', 'failure_message', 'num_trials', 'hosts', 'configs']
    """
    groups = run.failures.groupby(["failure_kind", "failure_phase", "failure_message"], dropna=False, sort=False)
    rows: list[dict[str, Any]] = [
        {
            "failure_kind": kind, "failure_phase": phase, "failure_message": message, "num_trials": len(group),
            "hosts": ", ".join(sorted(group["hostname"].dropna().unique())), "configs": ", ".join(dict.fromkeys(group["config"])),
        }
        for (kind, phase, message), group in groups
    ]  # fmt: skip
    rows.sort(key=lambda row: row["num_trials"], reverse=True)
    names = ("failure_kind", "failure_phase", "failure_message")
    return frame(rows, {**dict.fromkeys(names, "str"), "num_trials": "Int64", "hosts": "str", "configs": "str"})


def _same(first: Any, second: Any) -> bool:
    return bool(pd.isna(first) and pd.isna(second)) or bool(not pd.isna(first) and not pd.isna(second) and first == second)

