"""The tables of questions.py, two_runs.py and runs.py as text cells, for the page and the terminal. `TABLES` lists them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from feedrate.analysis.outlook import Outlook, outlook_of, what_if
from feedrate.analysis.questions import NOISY, effects, failures_by_reason, load_costs, noise, pareto, time_shares
from feedrate.analysis.rank_table import rank_shares
from feedrate.analysis.run import Run
from feedrate.analysis.sections import Section, duration, number, ranking_section, size
from feedrate.analysis.summary import best_by_batch_size, ranking
from feedrate.analysis.two_runs import Compared

CLOCK_OFF_S = 1.0
"""A smaller difference between the times that two hosts show is not told."""
_SAID = {
    "foreign_cpu_fraction": "Others",
    "throttled_fraction": "Throttled",
    "steal_fraction": "Stolen",
    "psi_io_fraction": "Storage",
}


def effects_section(run: Run) -> Section:
    """Return the table that shows how much each dimension matters."""
    rows = [
        (
            row["dimension"],
            row["value"],
            row["config"],
            f"{number(row['throughput_sps'])} ({_interval(row, 'throughput')})",
            f"{row['fraction_of_best']:.1%}",
            str(row["num_settings"]),
            str(row["differs_in"]),
        )
        for row in effects(run).to_dict("records")
    ]
    numeric = ("Of the best", "Settings", "Differs in")
    return Section(
        caption="The best setting with each value, compared with the answer at its batch size. If few settings were tried with a value, its rate is less certain",
        headers=("Dimension", "Value", "Best setting with it", f"{run.unit}/s", *numeric),
        rows=rows,
        numeric=frozenset(numeric),
    )


def pareto_section(run: Run) -> Section:
    """Return the table of throughput against memory."""
    rows = [
        (str(row["config"]), size(row["tree_pss_bytes"]), number(row["throughput_sps"]), _interval(row, "throughput"))
        for row in pareto(run).to_dict("records")
    ]
    numeric = ("RAM", f"{run.unit}/s", "95 % interval")
    caption = "Settings for which no other setting is better in both memory and throughput"
    return Section(caption=caption, headers=("Setting", *numeric), rows=rows, numeric=frozenset(numeric))


def time_section(run: Run) -> Section:
    """Return the table that shows where the time goes."""
    names = ("wait_fraction", "compute_fraction", "copy_fraction", "slowed_fraction", "boundary_fraction")
    rows = [
        (str(row["config"]), *(_share(row[name]) for name in names), _seconds(row["startup_s"]), _seconds(row["setup_s"]))
        for row in time_shares(run).to_dict("records")
    ]
    numeric = ("Waits", "Step alone", "Copy alone", "Slowed", "Epoch start", "First batch", "Set-up")
    caption = (
        "Shares of the time in an epoch: waiting for data, the step alone, the copy alone, and the time that step and copy lose because they slow "
        "each other down or loading slows them down. Then the share of a whole epoch that its start costs, and the seconds before the first step"
    )
    return Section(caption=caption, headers=("Setting", *numeric), rows=rows, numeric=frozenset(numeric))


def noise_section(run: Run) -> Section:
    """Return the table that shows how noisy each machine was."""
    rows = [
        (
            str(row["hostname"]) if pd.notna(row["hostname"]) else "unknown",
            str(row["num_measurements"]),
            str(row["num_disturbed"]),
            _share(row["window_sd_fraction"], 1),
            _share(row["run_sd_fraction"], 1),
            f"{row['clock_off_s']:+,.0f} s" if abs(row["clock_off_s"]) >= CLOCK_OFF_S else "",
            *(_most(row, name) for name in NOISY),
        )
        for row in noise(run).to_dict("records")
    ]
    numeric = ("Measured", "Disturbed", "Windows", "Starts", "Clock", *(_SAID[name] for name in NOISY))
    caption = (
        "Number of measurements, and number of those during which other processes took a tenth of the CPUs; standard deviation between the "
        "windows of one trial, and between fresh starts of one setting; difference between the host's clock and the driver's, whose times are used; "
        "median and maximum of: CPU time of other processes, periods throttled by a quota, time taken by the hypervisor, time in which a "
        "process waited for storage"
    )
    return Section(caption=caption, headers=("Host", *numeric), rows=rows, numeric=frozenset(numeric))


def loading_section(run: Run) -> Section:
    """Return the table that shows what loading costs in the processes that load."""
    names = ("load_item_s", "load_cpu_item_s", "load_delay_item_s", "load_wait_item_s", "collate_item_s", "handover_cpu_item_s", "sample_p50_s", "sample_p99_s", "sample_max_s")
    rows = [(str(row["config"]), *(_short_time(row[name]) for name in names), _size(row["batch_bytes"])) for row in load_costs(run).to_dict("records")]
    numeric = ("An item", "Computes", "No CPU", "Waits", "In collate_fn", "Handing over", "Median sample", "99 % within", "Longest", "A batch")
    caption = (
        "The time that an item takes in the process that loads it (a worker, or the trainer without workers): computing, ready to compute but without a "
        "CPU, and waiting for anything else, such as storage. The time in collate_fn is included. The CPU time of handing it over is not, because another thread of the worker does that. Then how long the dataset takes for single "
        "samples: a few slow ones hold up whole batches. Last, the memory of a batch's tensors"
    )
    is_measured = run.trials["throughput_sps"].notna().any()
    why = "no process that loads could be timed: spawned workers, or a run of an earlier feedrate" if is_measured else "no setting was measured"
    return Section(caption=caption, headers=("Setting", *numeric), rows=rows, numeric=frozenset(numeric), why_empty=why)


def ranks_section(run: Run) -> Section:
    """Return the table that shows how long each rank waits."""
    rows = [
        (
            str(row["config"]),
            f"rank {row['rank']}",
            _share(row["wait_fraction"]),
            _share(row["slowest_fraction"]) + (" (persistent)" if row["is_slowest"] else ""),
            str(row["num_windows"]),
        )
        for row in rank_shares(run).to_dict("records")
    ]
    numeric = ("Waits", "Waits longest in", "Windows")
    caption = (
        "The share of time in which each rank waits for its loader, and the share of the windows in which it waits longest of all. The rank that waits "
        "longest sets the pace; if it is persistently the same one, look at its part of the data, and at its CPUs"
    )
    why = "the training has one process"
    return Section(caption=caption, headers=("Setting", "Rank", *numeric), rows=rows, numeric=frozenset(numeric), why_empty=why)


def what_if_section(run: Run, found: Outlook | None = None) -> Section:
    """Return the table of predicted rates if one thing were different; `found` is `outlook_of(run)`, which is made if it is None."""
    found = found or outlook_of(run)
    rows = [
        (
            each.change,
            number(each.rate.sps),
            f"{number(max(each.rate.low_sps, 0.0))}-{number(each.rate.high_sps)}",
            f"{each.ratio:.2f}x",
            str(each.num_workers),
            "" if each.epoch_s is None else duration(each.epoch_s),
        )
        for each in found.what_ifs
    ]
    numeric = (f"{run.unit}/s", "95 % interval", "vs the best", "Workers", "An epoch")
    caption = (
        "Predicted, not measured: the rate if one thing were different, by a model of workers that queue for the CPUs, and the number of workers that would be "
        f"enough for it. On the {found.num_settings} measured settings of this batch size the model is {found.sd_fraction or 0.0:.0%} off (a standard deviation, 5% at least), which the intervals include"
    )
    return Section(
        caption=caption,
        headers=("If there were", *numeric),
        rows=rows,
        numeric=frozenset(numeric),
        why_empty=f"nothing is predicted: {found.why_none}",
    )


def reasons_section(run: Run) -> Section:
    """Return the table of failures and their reasons, the most frequent first."""
    rows = [
        (str(row["num_trials"]), *(str(row[name]) if pd.notna(row[name]) else "" for name in _WHY), row["hosts"], row["configs"])
        for row in failures_by_reason(run).to_dict("records")
    ]
    headers = ("Trials", "Kind", "While", "Reason", "Hosts", "Settings")
    return Section(caption="What failed, and why", headers=headers, rows=rows, numeric=frozenset({"Trials"}))


_WHY = ("failure_kind", "failure_phase", "failure_message")

TABLES: dict[str, tuple[str, Callable[[Run], Section]]] = {
    "ranking": ("what is best, and how sure that is", lambda run: ranking_section(run, ranking(run))),
    "batch-size": ("the best at each batch size", lambda run: ranking_section(run, best_by_batch_size(run))),
    "effects": ("how much each dimension matters", effects_section),
    "pareto": ("throughput against memory", pareto_section),
    "time": ("where the time goes", time_section),
    "loading": ("what loading costs", loading_section),
    "ranks": ("which rank waits", ranks_section),
    "what-if": ("what would make it faster, as predicted", what_if_section),
    "failures": ("what failed, and why", reasons_section),
    "noise": ("how noisy the machine was", noise_section),
}
"""Name -> the question, and the function that answers it."""


FRAMES: dict[str, Callable[[Run], pd.DataFrame]] = {
    "ranking": ranking,
    "batch-size": best_by_batch_size,
    "effects": effects,
    "pareto": pareto,
    "time": time_shares,
    "loading": load_costs,
    "ranks": rank_shares,
    "what-if": what_if,
    "failures": failures_by_reason,
    "noise": noise,
}
"""Name -> the function that returns the same table as numbers."""


def compared_section(compared: Compared, first: Run, second: Run) -> Section:
    """Return the comparison of two runs, setting by setting."""
    rows = [
        (
            f"{row['config']} (baseline)" if row["is_baseline"] else str(row["config"]),
            number(row["first_sps"]),
            number(row["second_sps"]),
            f"{row['ratio']:.3f} [{row['ratio_low']:.3f}-{row['ratio_high']:.3f}]",
            "" if pd.isna(row["first_speedup"]) else f"{row['first_speedup']:.2f}x",
            "" if pd.isna(row["second_speedup"]) else f"{row['second_speedup']:.2f}x",
        )
        for row in compared.settings.to_dict("records")
    ]
    numeric = (f"A, {first.unit}/s", f"B, {second.unit}/s", "B / A", "A vs baseline", "B vs baseline")
    caption = f"A: {first.path} · B: {second.path}"
    return Section(caption=caption, headers=("Setting", *numeric), rows=rows, numeric=frozenset(numeric))


def runs_section(table: pd.DataFrame) -> Section:
    """Return a list of runs, from the table that `runs.runs_table` returns."""
    rows = [
        (
            str(row["run"]),
            "" if pd.isna(row["created"]) else f"{row['created']:%Y-%m-%d %H:%M}",
            _text(row["workload"]),
            _text(row["hostname"]),
            str(row["state"]),
            str(row["num_trials"]),
            _text(row["config"]),
            "" if pd.isna(row["throughput_sps"]) else number(row["throughput_sps"]),
            "" if pd.isna(row["speedup"]) else f"{row['speedup']:.2f}x" + ("" if row["confirmed"] is True else " (not confirmed)"),
        )
        for row in table.to_dict("records")
    ]
    numeric = ("Trials", "Items/s")
    headers = ("Run", "Created (UTC)", "Workload", "Host", "State", "Trials", "Best", "Items/s", "Speed-up")
    return Section(caption="Runs, the oldest first", headers=headers, rows=rows, numeric=frozenset(numeric))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _share(value: Any, digits: int = 0) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}%}"


def _short_time(seconds: Any) -> str:
    if pd.isna(seconds):
        return ""
    return f"{1e6 * seconds:.3g} us" if seconds < 1e-3 else f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _size(num_bytes: Any) -> str:
    return "" if pd.isna(num_bytes) else size(num_bytes)


def _seconds(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:.2f} s"


def _most(row: dict[Any, Any], name: str) -> str:
    median, most = row[f"median_{name}"], row[f"max_{name}"]
    return "" if pd.isna(most) else f"{median:.0%}, {most:.0%}"


def _interval(row: dict[Any, Any], name: str) -> str:
    return f"{number(row[f'{name}_low_sps'])}-{number(row[f'{name}_high_sps'])}"
