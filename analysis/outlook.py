"""`Outlook`: how fast training would be with other numbers of workers, more CPUs, faster storage or a faster step, predicted from a run.

The time of a worker for an item is split into CPU time and the rest, in which it waits (for storage, a network, a lock). A change
makes one of these parts larger or smaller, and a model of the queue for the CPUs (costs.py) then gives the rate of the best number of workers.
Nothing of this is measured. Where the workers were timed, nothing is fitted either: how far the model is off on the measured settings says what it is worth here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from feedrate.analysis.change import Change, changes_asked_for, usual_changes
from feedrate.analysis.compat import median
from feedrate.analysis.costs import Costs, best_rate
from feedrate.analysis.estimate import Rate
from feedrate.analysis.run import Run
from feedrate.analysis.setting import setting_text
from feedrate.analysis.summary import counted, may_win, ranking, same
from feedrate.analysis.tables import frame

LEAST_SETTINGS = 3
"""With fewer measured settings at the batch size of the answer, nothing says how well the model describes the workload."""
LEAST_SD_FRACTION = 0.05
"""The model is never taken to be better than this."""
MOST_SD_FRACTION = 0.2
"""With a larger error on the measured settings, the model does not describe the workload, and nothing is predicted."""
CLIFF_FRACTION = 0.5
"""A setting with more workers that is slower than this share of one with fewer does not say how workers scale."""
STEP_LIMITS_FRACTION = 0.8
"""At this share of the rate of the step alone and more, a rate says little about the workers."""
SAME_FRACTION = 0.05
"""A smaller predicted change is no change."""
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
    """The smallest number of workers, of each rank, that is expected to reach this rate."""
    epoch_s: float | None
    """Seconds of an epoch at this rate; None if the length of an epoch is not known."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object as in best.json."""
        return {
            "name": self.name,
            "change": self.change,
            "samples_per_second": self.rate.sps,
            "ci95": [max(self.rate.low_sps, 0.0), self.rate.high_sps],
            "ratio": self.ratio,
            "num_workers": self.num_workers,
            "epoch_s": self.epoch_s,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The rate that the model expects at each number of workers, at the batch size of the answer."""

    batch_size: int | None
    num_workers: tuple[int, ...]
    """From 0 to the largest number that was measured."""
    sps: tuple[float, ...]
    """Items per second at each of them."""
    ceiling_sps: float
    """Items per second of the training step alone."""

    def best(self) -> tuple[float, int]:
        """Return the highest rate, and the smallest number of workers that is close to it."""
        return best_rate(self.sps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What a run predicts."""

    what_ifs: tuple[WhatIf, ...] = ()
    why_none: str | None = None
    """Why nothing is predicted, as a clause; None if there are predictions."""
    sd_fraction: float | None = None
    """How far the model is off on the measured settings: a standard deviation, as a fraction of the rate; None if it is not known."""
    num_settings: int = 0
    """Number of measured settings with the batch size of the answer, to which the model was compared; 0 if it was not."""
    curve: Curve | None = None
    """None if nothing is predicted."""
    answer: pd.Series[Any] | None = None
    """The row of `ranking(run)` with which the predictions are compared; None if nothing is predicted."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object `what_if` of best.json."""
        return {
            "predicted": [each.to_json() for each in self.what_ifs],
            "why_none": self.why_none,
            "sd_fraction": self.sd_fraction,
            "num_settings": self.num_settings,
        }


def what_if(run: Run, *, ceiling_sps: float | None = None, num_ranks: int | None = None) -> pd.DataFrame:
    """Return how fast training is predicted to be if one thing were different, one row per change; no rows if nothing is predicted.

    `ratio` is the predicted rate divided by the measured rate of the answer (best.json; the fastest setting while there is none); `epoch_s` is how
    long an epoch would take; `sd_fraction` says how far the model is off on the measured settings. `outlook_of(run).why_none` says why there are no rows.

    Args:
        run: of a search.
        ceiling_sps: items per second that another accelerator trains alone; adds a row for it.
        num_ranks: ranks on this host that share its CPUs, each with an accelerator of its own; adds a row with the rate of all of them.

    Example:
        >>> from feedrate.analysis import load_run, what_if
        >>> table = what_if(load_run("docs/example-run"))
        >>> list(table.loc[table["ratio"] > 1.5, "name"])
        ['cpus_twice', 'decoding_half']
    """
    found = outlook_of(run, ceiling_sps=ceiling_sps, num_ranks=num_ranks)
    rows = [
        {
            "name": each.name, "change": each.change, "throughput_sps": each.rate.sps, "throughput_low_sps": max(each.rate.low_sps, 0.0),
            "throughput_high_sps": each.rate.high_sps, "ratio": each.ratio, "num_workers": each.num_workers, "epoch_s": each.epoch_s,
            "sd_fraction": found.sd_fraction,
        }
        for each in found.what_ifs
    ]  # fmt: skip
    numbers = dict.fromkeys(("throughput_sps", "throughput_low_sps", "throughput_high_sps", "ratio"), "float64")
    return frame(rows, {"name": "str", "change": "str", **numbers, "num_workers": "Int64", "epoch_s": "float64", "sd_fraction": "float64"})


def outlook_of(
    run: Run, answer: pd.Series[Any] | None = None, *, ceiling_sps: float | None = None, num_ranks: int | None = None
) -> Outlook:
    """Return what the run predicts for a change of machine, data or model, or why it predicts nothing.

    Args:
        run: of a search.
        answer: the row of `ranking(run)` that is the answer; None is that of best.json, or the fastest complete setting while there is none.
        ceiling_sps, num_ranks: as in `what_if`.
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
    ceilings = run.ceilings
    if size not in ceilings:
        return Outlook(why_none=f"the ceiling is not known: {run.ceilings_found.why_not(size)}")
    if rows["slowest_rank"].notna().any():
        return Outlook(why_none="the model of loading does not know several ranks, which share the CPUs")
    rows = rows.assign(num_workers=rows["effective_num_workers"].fillna(rows["num_workers"]))  # workers without data load nothing
    here = _without_cliffs(rows[same(rows["batch_size"], size)].groupby("config", sort=False).agg({"num_workers": "first", "steady_sps": "median"}))
    if len(here) < LEAST_SETTINGS:
        return Outlook(why_none=f"fewer than {LEAST_SETTINGS} settings were measured to their end at the batch size of the answer")
    costs = _costs(run, rows, size, here, 1 / ceilings[size])
    if costs is None:
        return Outlook(why_none="no setting with workers says how much CPU time it took")
    most = max(int(rows["num_workers"].max()), 1)
    curve = Curve(batch_size=size, num_workers=tuple(range(most + 1)), sps=tuple(costs.rates(most)), ceiling_sps=ceilings[size])
    sd, num = _error(curve, here), len(here)
    if sd > MOST_SD_FRACTION:
        return Outlook(why_none=f"the model of loading is {sd:.0%} off on the {num} measured settings", sd_fraction=sd, num_settings=num)
    changes = [*usual_changes(costs), *changes_asked_for(costs, ceiling_sps, num_ranks)]
    num_items = rows.loc[rows["config"] == answer["config"], "epoch_samples"].max()
    what_ifs = tuple(_predicted(costs, each, answer, most, sd, None if pd.isna(num_items) else int(num_items)) for each in changes)
    return Outlook(what_ifs=what_ifs, sd_fraction=sd, num_settings=num, curve=curve, answer=answer)


def _error(curve: Curve, settings: pd.DataFrame) -> float:
    """Return how far the model is off on the measured settings: a standard deviation of log(rate), from the median, which a few odd settings do not change."""
    expected = np.array(curve.sps)[settings["num_workers"].to_numpy(dtype=int)]
    errors = np.abs(np.log(settings["steady_sps"].to_numpy(dtype=float) / expected))
    return max(MAD_TO_SD * float(np.median(errors)), LEAST_SD_FRACTION)


def _costs(run: Run, rows: pd.DataFrame, size: int | None, here: pd.DataFrame, step_s: float) -> Costs | None:
    """Return what an item costs at a batch size; None if no setting with workers says how much CPU time it took.

    The CPU time of the step is what loading leaves of the CPU time of an item, so handing batches over is in it, too. Times are medians over all measurements
    with workers at this batch size, because a single one may be a lucky reading.

    Args:
        rows: the records that count.
        size: the batch size; the times of others are used if those of this one are not known.
        here: the measured settings with this batch size.
        step_s: seconds of the training step alone per item.
    """
    loading = rows[rows["num_workers"] > 0]
    busy_s = _of_size(loading.assign(busy_s=loading["own_cpu_fraction"] * loading["num_cpus"] / loading["steady_sps"]).dropna(subset=["busy_s"]), size)
    if busy_s.empty:
        return None
    cpu_s, num_cpus = float(median(busy_s["busy_s"])), float(median(rows["num_cpus"]))
    timed = run.latest[same(run.latest["batch_size"], size)]["step_only_cpus"]
    step_cpus = 1.0 if timed.isna().all() else float(median(timed))  # records of before this column: one CPU works on the step
    probed = _of_size(loading.dropna(subset=["load_cpu_item_s"]), size)
    load_cpu_s = max(cpu_s - step_cpus * step_s, 0.0) if probed.empty else float(median(probed["load_cpu_item_s"]))
    waits = probed["load_item_s"] - probed["load_cpu_item_s"] - probed["load_delay_item_s"]  # time without a CPU is no waiting: more CPUs would end it
    load_wait_s = _item_s(here, step_s, num_cpus) - load_cpu_s if waits.isna().all() else float(median(waits.clip(lower=0.0)))
    return Costs(
        load_cpu_s=load_cpu_s,
        load_wait_s=max(load_wait_s, 0.0),
        step_s=step_s,
        step_cpu_s=max(cpu_s - load_cpu_s, 0.0),
        step_cpus=step_cpus,
        num_cpus=num_cpus,
    )


def _of_size(rows: pd.DataFrame, size: int | None) -> pd.DataFrame:
    """Return the rows with a batch size, or all if there are none."""
    found = rows[same(rows["batch_size"], size)]
    return rows if found.empty else found


def _item_s(settings: pd.DataFrame, step_s: float, num_cpus: float) -> float:
    """Return the seconds that a worker takes per item, from settings with no more workers than CPUs, which are least in each other's way, where the step is not the limit."""
    numbers, sps = settings["num_workers"].to_numpy(dtype=float), settings["steady_sps"].to_numpy(dtype=float)
    tells = (numbers == 0) | ((numbers <= max(num_cpus, numbers.min())) & (sps < STEP_LIMITS_FRACTION / step_s))
    numbers, sps = (numbers[tells], sps[tells]) if tells.any() else (numbers, sps)
    return float(np.median(np.where(numbers > 0, numbers / sps, 1 / sps - step_s)))


def _without_cliffs(settings: pd.DataFrame) -> pd.DataFrame:
    """Return the settings without those that are slower than CLIFF_FRACTION of one with fewer workers: they ran out of memory or files, which the model does not know."""
    with_workers = settings[settings["num_workers"] > 0]
    best = with_workers.groupby("num_workers")["steady_sps"].max().sort_index()
    best_with_fewer = best.cummax().shift()
    fell = with_workers["steady_sps"] < CLIFF_FRACTION * with_workers["num_workers"].map(best_with_fewer)
    return settings.drop(index=with_workers.index[fell.fillna(False).astype(bool)])


def _predicted(now: Costs, change: Change, answer: pd.Series[Any], most: int, sd: float, epoch_samples: int | None) -> WhatIf:
    """Return the prediction for a change, from the measured rate of the answer."""
    measured = Rate(sps=float(answer["throughput_sps"]), low_sps=float(answer["throughput_low_sps"]), high_sps=float(answer["throughput_high_sps"]))
    then, num_workers = change.costs.sps(most)
    ratio = change.num_ranks * then / now.sps(most)[0]
    rate = measured.scaled(ratio).widened(sd)
    epoch_s = None if epoch_samples is None else epoch_samples / rate.sps
    return WhatIf(name=change.name, change=change.change, rate=rate, ratio=ratio, num_workers=num_workers, epoch_s=epoch_s)


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
