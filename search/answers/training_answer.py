"""What a training with `feedrate train` leaves: its best.json, and what it says about itself at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feedrate.analysis.best import BEST_SCHEMA, python_snippet
from feedrate.analysis.paste import paste_heading
from feedrate.analysis.ranks import num_ranks_of_training, waits_of_training
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.deciding.candidates import ENOUGH_FRACTION
from feedrate.trainables.tuning.training_report import OBSERVES, TrainingReport

COMPUTE_BOUND_WAIT = 0.05
"""Share of waiting below which a training counts as compute-bound, as 95 % of the ceiling do in a search."""


def name_of(command: Sequence[str]) -> str:
    """Return a name for a training: the script's file without its suffix, or the module of `python -m`."""
    words = list(command)
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1].rpartition(".")[2]
    return Path(next((word for word in words if word.endswith((".py", ".sh"))), words[0])).stem


def best_of(report: TrainingReport, command: Sequence[str], name: str) -> dict[str, Any] | None:
    """Return the content of best.json; None if nothing was measured.

    Args:
        report: what the training wrote.
        command: its words.
        name: its name, as in the run folder of a search.
    """
    summary = report.summary
    best, own = summary["best"], summary["own"]
    items, unit = (summary["items_per_batch"], "samples") if summary["items_per_batch"] else (1, "batches")
    if "batches_per_s" not in best or "batches_per_s" not in own:
        return None
    size = str(report.best.get("batch_size"))
    speedup = summary["speedup"] if summary["confirmed"] else best["batches_per_s"] / own["batches_per_s"]
    ci95 = summary["speedup_ci95"] if summary["confirmed"] else [best["ci95"][0] / own["ci95"][1], best["ci95"][1] / max(own["ci95"][0], 1e-9)]
    if report.best == report.dataloader:
        speedup, ci95 = 1.0, [1.0, 1.0]
    rate = {"samples_per_second": best["batches_per_s"] * items, "ci95": [each * items for each in best["ci95"]]}
    ceiling_sps = best["batches_per_s"] * items / max(1 - best["wait_fraction"], 1e-9)
    waits, num_ranks = waits_of_training(summary), num_ranks_of_training(summary)
    num_cpus = report.measured_on["num_cpus"]
    made = {} if report.origin is None else {"script": {"loaders": [{"role": "measured", **report.origin}]}}
    return {
        "schema": BEST_SCHEMA,
        "dataloader": report.best,
        "process": {},
        "throughput": {**rate, "unit": unit, "per": "rank" if num_ranks == 1 or unit == "batches" else "world"},
        "baseline": {
            "dataloader": report.dataloader,
            "samples_per_second": own["batches_per_s"] * items,
            "speedup": speedup,
            "speedup_ci95": ci95,
        },
        "ceiling": {"step_only_samples_per_second": ceiling_sps, "fraction_of_ceiling": 1 - best["wait_fraction"] or 1e-9},
        "verdict": "compute-bound" if best["wait_fraction"] < COMPUTE_BOUND_WAIT else "loader-bound",
        "confirmed": bool(summary["confirmed"]),
        "tied_with": [],
        "best_by_batch_size": {size: {"dataloader": report.best, **rate}},
        "scope": {
            "ranks_per_host": num_ranks,
            "world_size": num_ranks,
            "cpus_per_rank": num_cpus if num_ranks == 1 else num_cpus / num_ranks,
            "slowest_rank": None if waits is None else waits.slowest,
        },
        "measured_on": report.measured_on,
        "workload": {"target": " ".join(command), "name": name, "unit": unit, "command": list(command), **made},
        "search": {"objective": "steady", "while_training": True, "num_decisions": report.num_decisions, "created_unix_s": time.time()},
    }


def cost(report: TrainingReport, price_per_hour: float | None) -> dict[str, Any]:
    """Return what waiting cost, and what the best setting saved: seconds and, with a price, money."""
    summary = report.summary
    own, best = summary["own"], summary["best"]
    saved_s, trained_s = 0.0, summary["wait_s"] + summary["step_s"]
    if "batches_per_s" in own and "batches_per_s" in best and best["num_workers"] != own["num_workers"]:
        saved_s = max(summary["num_batches"] / own["batches_per_s"] - trained_s, 0.0)
    price = None if price_per_hour is None else price_per_hour / 3600
    return {
        "trained_s": trained_s,
        "waited_s": summary["wait_s"],
        "wait_fraction": summary["wait_fraction"],
        "saved_s": saved_s,
        "lost_s": summary["lost_s"],
        "waited_cost": None if price is None else summary["wait_s"] * price,
        "saved_cost": None if price is None else saved_s * price,
    }


def closing_lines(report: TrainingReport, facts: Mapping[str, Any], best: Mapping[str, Any] | None) -> list[str]:
    """Return the last lines that `feedrate train` prints."""
    summary = report.summary
    waited = f"{_time(facts['waited_s'])} of which ({facts['wait_fraction']:.1%}) the training waited for batches"
    cost = "" if facts["waited_cost"] is None else f"; waiting cost {_money(facts['waited_cost'])}"
    lines = [f"{report.loader}: {summary['num_batches']:,} batches in {_time(facts['trained_s'])}, {waited}{cost}"]
    if (waits := waits_of_training(summary)) is not None:
        lines.append(waits.sentence)
    if best is None:
        return [*lines, "the training was too short for a measurement"]
    unit = best["throughput"]["unit"]
    own_rate, rate = (f"{each['samples_per_second']:,.0f} {unit}/s" for each in (best["baseline"], best["throughput"]))
    if report.best == report.dataloader:
        return [*lines, f"yours ({_short(report.dataloader)}): {own_rate}; {_to_save(facts, summary['left_alone'])}"]
    low, high = best["baseline"]["speedup_ci95"]
    sure = "confirmed while the settings took turns" if best["confirmed"] else "not confirmed"
    lines.append(f"yours ({_short(report.dataloader)}): {own_rate}; best ({_short(report.best)}): {rate}, at different times")
    saved = "" if facts["saved_cost"] is None else f" and cost {_money(facts['saved_cost'])} more"
    lines.append(f"{best['baseline']['speedup']:.2f}x [{low:.2f}-{high:.2f}], {sure}; with your setting this training would have taken {_time(facts['saved_s'])} longer{saved}")
    heading = paste_heading(best)
    return [*lines, *f"{heading[0].lower()}{heading[1:]} {python_snippet(best)}".splitlines()]


def _to_save(facts: Mapping[str, Any], left_alone: str | None) -> str:
    """Say what a loader that keeps up with the training would have saved in this whole run: it cannot be more than was waited."""
    if facts["wait_fraction"] < ENOUGH_FRACTION:
        return "no other loader would make this training noticeably faster"
    worth = "" if facts["waited_cost"] is None else f", worth {_money(facts['waited_cost'])}"
    ratio = 1 / max(1 - facts["wait_fraction"], 0.01)
    return (
        f"a loader that keeps up would save up to {_time(facts['waited_s'])} of {_time(facts['trained_s'])}{worth} (the whole run up to {ratio:.3g}x as fast). "
        + ("To look for it, leave out --observe, or use feedrate search" if left_alone == OBSERVES else "feedrate search also tries other settings than the number of workers")
    )


def _short(kwargs: Mapping[str, Any]) -> str:
    return LoaderConfig.from_dict({"batch_size": None, **kwargs}).short()


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 0.005 or not amount else "less than 0.01"
