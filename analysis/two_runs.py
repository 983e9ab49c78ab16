"""`compare`: compare two runs of one workload, setting by setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from feedrate.analysis.estimate import Rate, widening
from feedrate.analysis.run import Run
from feedrate.analysis.run_folder import RunError
from feedrate.analysis.summary import ranking
from feedrate.analysis.tables import frame

_DTYPES = {
    "config": "str", "first_sps": "float64", "second_sps": "float64", "ratio": "float64", "ratio_low": "float64",
    "ratio_high": "float64", "first_speedup": "float64", "second_speedup": "float64", "is_baseline": "bool",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Compared:
    """The comparison of two runs, over the settings whose measurement both runs completed."""

    settings: pd.DataFrame
    """One row per setting, the first run's fastest first. `ratio` is second over first, with a 95 % interval. If the machine was
    slower throughout one of the runs, this shows in the ratios, but not in the speed-ups over each run's own baseline."""
    overall: Rate | None
    """The ratio over all settings, weighted by their precision, with its 95 % interval; None if no setting is in both runs.
    If the machine was slower throughout one of the runs, this ratio includes that."""
    same_host: bool
    """Whether both were measured on the same machine. If not, ratios say as much about the machines as about the runs."""
    differences: list[str]
    """One sentence per difference: in machine, versions, options or baseline."""


def compare(first: Run, second: Run) -> Compared:
    """Compare the second run's rates with those of the first, setting by setting.

    Raises:
        RunError: the runs are of different workloads, or count different items.

    Example:
        >>> from feedrate.analysis import compare, load_run
        >>> run = load_run("docs/example-run")
        >>> compared = compare(run, run)
        >>> bool((compared.settings["ratio"] == 1).all()), compared.same_host, compared.differences
        (True, True, [])
    """
    _refuse_other_workload(first, second)
    tables = [_complete(run) for run in (first, second)]
    names = [config for config in tables[0].index if config in tables[1].index]
    rows, ratios = [], []
    for config in names:
        one, two = (table.loc[config] for table in tables)
        ratio = _ratio(two, one)
        ratios.append(ratio)
        rows.append({
            "config": config, "first_sps": one["throughput_sps"], "second_sps": two["throughput_sps"], "ratio": ratio.sps,
            "ratio_low": ratio.low_sps, "ratio_high": ratio.high_sps, "first_speedup": one["speedup"],
            "second_speedup": two["speedup"], "is_baseline": bool(one["is_baseline"]),
        })  # fmt: skip
    return Compared(
        settings=frame(rows, _DTYPES),
        overall=_overall(ratios) if ratios else None,
        same_host=bool(_hosts(first)) and _hosts(first) == _hosts(second),
        differences=_differences(first, second),
    )


def _refuse_other_workload(first: Run, second: Run) -> None:
    one, two = (_part(run, "workload") for run in (first, second))
    for name in ("name", "options", "unit"):
        if one.get(name) != two.get(name):
            told = f"{first.path} has {name} {one.get(name)!r}, but {second.path} has {two.get(name)!r}"
            raise RunError(f"these are runs of different workloads: {told}. Compare runs of one workload")
    objectives = [run.search.get("objective", "epoch") for run in (first, second)]
    if objectives[0] != objectives[1]:
        raise RunError(
            f"{first.path} has {objectives[0]} rates, but {second.path} has {objectives[1]} rates: search one of them again with --objective"
        )


def _complete(run: Run) -> pd.DataFrame:
    ranked = ranking(run)
    return ranked[ranked["status"] == "complete"].set_index("config")


def _ratio(above: pd.Series[Any], below: pd.Series[Any]) -> Rate:
    """Return the ratio of two rates whose errors are independent."""
    ratio = float(above["throughput_sps"] / below["throughput_sps"])
    half = math.hypot(*(each["throughput_high_sps"] / each["throughput_sps"] - 1 for each in (above, below)))
    return Rate(sps=ratio, low_sps=ratio * math.exp(-half), high_sps=ratio * math.exp(half))  # A/B is the inverse of B/A


def _overall(ratios: Sequence[Rate]) -> Rate:
    """Return the weighted geometric mean; its interval is widened if the ratios differ by more than their own explain (Birge)."""
    logs = [math.log(ratio.sps) for ratio in ratios]
    errors = [max(math.log(ratio.high_sps / ratio.sps), 1e-9) for ratio in ratios]
    weights = [error**-2 for error in errors]
    mean = sum(weight * log for weight, log in zip(weights, logs, strict=True)) / sum(weights)
    half = widening([log - mean for log in logs], errors) / math.sqrt(sum(weights))
    return Rate(sps=math.exp(mean), low_sps=math.exp(mean - half), high_sps=math.exp(mean + half))


def _hosts(run: Run) -> set[str]:
    return set(run.latest["host_id"].dropna())


def _part(run: Run, name: str) -> Mapping[str, Any]:
    part = run.search.get(name)
    return part if isinstance(part, Mapping) else {}


def _differences(first: Run, second: Run) -> list[str]:
    found = []
    for part, what in (("hardware", "machine"), ("versions", "version of"), ("options", "option"), ("placement", "placement")):
        one, two = _part(first, part), _part(second, part)
        for name in dict.fromkeys([*one, *two]):
            if name not in _IGNORED and one.get(name) != two.get(name):
                found.append(f"{what} {name.replace('_', ' ')}: {one.get(name)} and {two.get(name)}")
    if first.search.get("baseline") != second.search.get("baseline"):
        found.append("the baselines differ, so the speed-ups compare with different settings")
    epochs = [_part(run, "workload").get("epoch_samples") for run in (first, second)]
    if epochs[0] != epochs[1]:
        found.append(f"items in an epoch: {epochs[0]} and {epochs[1]}")
    for run in (first, second):
        if run.unfinished:
            found.append(f"{run.path} is not finished")
    return found


_IGNORED = frozenset({
    "seed", "max_trials", "time_budget_s", "sampler", "keep_going", "storage", "warm_start", "where", "num_slots",
    "optuna", "pandas", "pyarrow", "threadpoolctl", "psutil", "rich", "plotly", "psycopg", "matplotlib", "ipykernel",
})  # fmt: skip
"""Options and versions that decide which settings are measured, or that draw and store results; they do not change a setting's rate."""
