"""`Outlook`: how fast training would be with more CPUs, faster storage, cheaper decoding or a faster step, predicted from a run.

The prediction comes from the model of loading (rate_model.py), fitted to the settings that the run measured. The time of a
worker for an item is split into CPU time and the rest, in which it waits (for storage, a network, a lock). A change makes one of
these parts larger or smaller; the model then gives the rate of the best number of workers. Nothing of this is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from feedrate.analysis.compat import median
from feedrate.analysis.estimate import Rate
from feedrate.analysis.rate_model import RateModel, fit_model
from feedrate.analysis.run import Run
from feedrate.analysis.setting import setting_text
from feedrate.analysis.summary import counted, may_win, ranking, same
from feedrate.analysis.tables import frame

LEAST_SETTINGS = 3
"""With fewer measured settings, nothing says how well the model describes the workload."""
LEAST_SD_FRACTION = 0.05
"""The model is never taken to be better than this (docs/predicting.md has its errors on workloads whose every setting was measured)."""
MOST_SD_FRACTION = 0.2
"""With a larger error on the measured settings, the model does not describe the workload, and nothing is predicted."""
ENOUGH_FRACTION = 0.98
"""Of numbers of workers that reach this share of the best predicted rate, the smallest one is named."""
CLIFF_FRACTION = 0.5
"""A setting with more workers that is slower than this share of one with fewer does not say how workers scale."""
SAME_FRACTION = 0.05
"""A smaller predicted change is no change."""
MOST_STEP_CPUS = 1.5
"""If the step alone keeps more CPUs busy than this, its threads wait for each other actively while workers take their CPUs, and nobody can tell
what it would need with other CPUs: the number of CPUs is no change then."""
SLOWER = ("cpus_half", "storage_half_as_fast")
"""Changes for the worse: nobody asks whether they help."""
MAD_TO_SD = 1.4826
"""Standard deviation of a normal distribution, divided by its median absolute deviation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WhatIf:
    """The predicted rate of training if one thing were different."""

    name: str
    """For programs, such as cpus_twice."""
    change: str
    """For people: what would be different."""
    rate: Rate
    """Items per second with a 95 % interval, which includes the error of the model on the measured settings."""
    ratio: float
    """The predicted rate divided by the measured rate of the answer."""
    num_workers: int
    """The smallest number of workers that is expected to reach this rate."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object as in best.json."""
        return {
            "name": self.name,
            "change": self.change,
            "samples_per_second": self.rate.sps,
            "ci95": [max(self.rate.low_sps, 0.0), self.rate.high_sps],
            "ratio": self.ratio,
            "num_workers": self.num_workers,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What a run predicts."""

    what_ifs: tuple[WhatIf, ...] = ()
    why_none: str | None = None
    """Why nothing is predicted, as a clause; None if there are predictions."""
    sd_fraction: float | None = None
    """How far the model is off on the measured settings: a standard deviation, as a fraction of the rate; None if it is not known."""
    num_settings: int = 0
    """Number of measured settings to which the model was fitted; 0 if it was not."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object `what_if` of best.json."""
        return {
            "predicted": [each.to_json() for each in self.what_ifs],
            "why_none": self.why_none,
            "sd_fraction": self.sd_fraction,
            "num_settings": self.num_settings,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What an item costs at one batch size.

    Attributes:
        load_cpu_s: CPU seconds of loading it in a worker.
        load_wait_s: seconds in which the worker waits meanwhile.
        step_s: seconds of the training step alone.
        step_cpu_s: CPU seconds of the training process for it.
        num_cpus: CPUs that training and workers share.
        efficiency: share of the CPUs' time that they can use, as fitted; it may exceed 1, because CPU time per item differs between settings.
    """

    load_cpu_s: float
    load_wait_s: float
    step_s: float
    step_cpu_s: float
    num_cpus: float
    efficiency: float

    def sps(self, most: int) -> tuple[float, int]:
        """Return the highest rate with 0 to `most` workers, and the smallest number of workers that is close to it."""
        step_s = max(self.step_s, self.step_cpu_s / self.num_cpus)
        cpu_s = self.load_cpu_s + self.step_cpu_s
        cap_sps = self.efficiency * self.num_cpus / cpu_s if cpu_s > 0 else math.inf
        model = RateModel(item_s=max(self.load_cpu_s + self.load_wait_s, 1e-9), cap_sps=cap_sps, ceilings={0: 1 / step_s})
        rates = np.exp(model.log_rate(np.arange(most + 1.0), np.zeros(most + 1)))
        enough = int(np.flatnonzero(rates >= ENOUGH_FRACTION * rates.max())[0])
        return float(rates.max()), enough


def what_if(run: Run) -> pd.DataFrame:
    """Return how fast training is predicted to be if one thing were different, one row per change; no rows if nothing is predicted.

    `ratio` is the predicted rate divided by the measured rate of the answer (best.json; the fastest setting while there is none); `sd_fraction` says how far the model is off on the
    measured settings. `outlook_of(run).why_none` says why there are no rows.

    Example:
        >>> from feedrate.analysis import load_run, what_if
        >>> table = what_if(load_run("docs/example-run"))
        >>> list(table.loc[table["ratio"] > 1.1, "name"])
        ['cpus_twice', 'decoding_half']
    """
    found = outlook_of(run)
    rows = [
        {
            "name": each.name, "change": each.change, "throughput_sps": each.rate.sps, "throughput_low_sps": max(each.rate.low_sps, 0.0),
            "throughput_high_sps": each.rate.high_sps, "ratio": each.ratio, "num_workers": each.num_workers, "sd_fraction": found.sd_fraction,
        }
        for each in found.what_ifs
    ]  # fmt: skip
    rates = ("throughput_sps", "throughput_low_sps", "throughput_high_sps", "ratio")
    return frame(rows, {"name": "str", "change": "str", **dict.fromkeys(rates, "float64"), "num_workers": "Int64", "sd_fraction": "float64"})


def outlook_of(run: Run, answer: pd.Series[Any] | None = None) -> Outlook:
    """Return what the run predicts for a change of machine, data or model, or why it predicts nothing.

    Args:
        run: of a search.
        answer: the row of `ranking(run)` that is the answer; None is that of best.json, or the fastest complete setting while there is none.
    """
    ranked = ranking(run)
    able = ranked[(ranked["status"] == "complete") & may_win(run, ranked)]
    if able.empty:
        return Outlook(why_none="no setting was measured to its end")
    if answer is None:
        named = able[able["config"] == ("" if run.best is None else setting_text(run.best))]
        answer = (able if named.empty else named).iloc[0]
    size = None if pd.isna(answer["batch_size"]) else int(answer["batch_size"])
    rows = counted(run)
    rows = rows[rows["config"].isin(able["config"])]
    found = _costs(run, rows, answer, size)
    if isinstance(found, str):
        return Outlook(why_none=found)
    costs, sd, num = found
    if sd > MOST_SD_FRACTION:
        return Outlook(why_none=f"the model of loading is {sd:.0%} off on the {num} measured settings", sd_fraction=sd, num_settings=num)
    measured = Rate(sps=float(answer["throughput_sps"]), low_sps=float(answer["throughput_low_sps"]), high_sps=float(answer["throughput_high_sps"]))
    most = max(int(rows["num_workers"].max()), 1)
    return Outlook(what_ifs=tuple(_predicted(costs, measured, most, sd)), sd_fraction=sd, num_settings=num)


def _costs(run: Run, rows: pd.DataFrame, answer: pd.Series[Any], size: int | None) -> tuple[Costs, float, int] | str:
    """Return what an item costs, the error of the model, and the number of settings to which it was fitted; or why that is not known."""
    ceilings = run.ceilings
    if size not in ceilings:
        return f"the ceiling is not known: {run.ceilings_found.why_not(size)}"
    if rows["slowest_rank"].notna().any():
        return "the model of loading does not know several ranks, which share the CPUs"
    with_workers = rows[rows["num_workers"] > 0]
    # without workers, threads of the step that spin while a batch is loaded count as CPU time of loading
    busy = with_workers["own_cpu_fraction"] * with_workers["num_cpus"] / with_workers["steady_sps"]
    mine = busy[with_workers["config"] == answer["config"]]
    cpu_s = median(mine if mine.notna().any() else busy)
    num_cpus = median(rows["num_cpus"])
    if pd.isna(cpu_s) or pd.isna(num_cpus):
        return "no setting with workers says how much CPU time it took"
    pooled = _without_cliffs(rows.groupby("config", sort=False).agg({"num_workers": "first", "batch_size": "first", "steady_sps": "median"}))
    if len(pooled) < LEAST_SETTINGS:
        return f"fewer than {LEAST_SETTINGS} settings were measured to their end"
    sizes = [0 if pd.isna(each) else int(each) for each in pooled["batch_size"]]
    workers = [int(each) for each in pooled["num_workers"]]
    logs = np.log(pooled["steady_sps"].to_numpy(dtype=float))
    model = fit_model(workers, sizes, logs.tolist(), {each or 0: sps for each, sps in ceilings.items()}, float(cpu_s), round(num_cpus))
    errors = np.abs(model.log_rate(np.array(workers, dtype=float), np.array(sizes, dtype=float)) - logs)
    sd = max(MAD_TO_SD * float(np.median(errors)), LEAST_SD_FRACTION)
    step_s = 1 / ceilings[size]
    timed = run.latest[same(run.latest["batch_size"], answer["batch_size"])]["step_only_cpus"]
    busy_cpus = 1.0 if timed.isna().all() else float(median(timed))  # records of before this column: one CPU works on the step
    step_cpu_s = min(busy_cpus * step_s, float(cpu_s))
    load_cpu_s = min(float(cpu_s) - step_cpu_s, model.item_s)
    costs = Costs(
        load_cpu_s=load_cpu_s,
        load_wait_s=model.item_s - load_cpu_s,
        step_s=step_s,
        step_cpu_s=step_cpu_s,
        num_cpus=float(num_cpus),
        efficiency=model.cap_sps * (load_cpu_s + step_cpu_s) / float(num_cpus),
    )
    return costs, sd, len(pooled)


def _without_cliffs(settings: pd.DataFrame) -> pd.DataFrame:
    """Return the settings without those that are slower than CLIFF_FRACTION of one with fewer workers: they ran out of memory or files, which the model does not know."""
    with_workers = settings[settings["num_workers"] > 0]
    best = with_workers.groupby("num_workers")["steady_sps"].max().sort_index()
    best_with_fewer = best.cummax().shift()
    fell = with_workers["steady_sps"] < CLIFF_FRACTION * with_workers["num_workers"].map(best_with_fewer)
    return settings.drop(index=with_workers.index[fell.fillna(False).astype(bool)])


def _predicted(costs: Costs, measured: Rate, most: int, sd: float) -> list[WhatIf]:
    now, _ = costs.sps(most)
    found = []
    for name, change, changed in _changes(costs):
        then, num_workers = changed.sps(most)
        ratio = then / now
        found.append(
            WhatIf(name=name, change=change, rate=measured.scaled(ratio).widened(sd), ratio=ratio, num_workers=num_workers)
        )
    return found


def _changes(costs: Costs) -> list[tuple[str, str, Costs]]:
    """Return the changes: the name, the words, and what an item costs then."""
    changes = []
    if costs.step_cpu_s <= MOST_STEP_CPUS * costs.step_s:
        changes.append(("cpus_twice", "twice the CPUs", replace(costs, num_cpus=2 * costs.num_cpus)))
    if changes and costs.num_cpus >= 2:
        changes.append(("cpus_half", "half the CPUs", replace(costs, num_cpus=costs.num_cpus / 2)))
    return [
        *changes,
        ("data_in_memory", "loading that never waits, such as data in memory", replace(costs, load_wait_s=0.0)),
        ("storage_twice_as_fast", "storage twice as fast", replace(costs, load_wait_s=costs.load_wait_s / 2)),
        ("storage_half_as_fast", "storage half as fast", replace(costs, load_wait_s=costs.load_wait_s * 2)),
        ("decoding_half", "decoding at half the cost", replace(costs, load_cpu_s=costs.load_cpu_s / 2)),
        ("step_fifth", "a step that takes a fifth less time", replace(costs, step_s=0.8 * costs.step_s, step_cpu_s=0.8 * costs.step_cpu_s)),
    ]


def helps(found: Mapping[str, Any]) -> str | None:
    """Return one sentence that says what would make training faster, from `what_if` of best.json; None if nothing is predicted."""
    predicted = found["predicted"]
    if not predicted:
        return None
    better = sorted((each for each in predicted if each["ratio"] > 1 + SAME_FRACTION), key=lambda each: -each["ratio"])
    others = [each["change"] for each in predicted if each not in better and each["name"] not in SLOWER]
    if not better:
        return "Predicted: none of these would help: " + ", ".join(others) + "."
    said = "Predicted to help: " + ", ".join(f"{each['change']} ({each['ratio']:.2g}x)" for each in better)
    return said + (f"; not: {', '.join(others)}." if others else ".")
