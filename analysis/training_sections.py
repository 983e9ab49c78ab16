"""What the report of a training says, section by section, as plain text cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from feedrate.analysis.ranks import waits_of_training
from feedrate.analysis.sections import Section, duration, fact_rows, number
from feedrate.analysis.setting import config_text
from feedrate.analysis.training import Training, by_setting, value_of


def title(training: Training) -> str:
    """Return the loader and the folder, which identify the training."""
    name = training.report.get("loader")
    return f"{name if isinstance(name, str) else 'training'} · {training.path.name or training.path.resolve().name}"


def headline(training: Training) -> str:
    """Return in one sentence what became of the training's loader."""
    summary = _summary(training)
    speedup, own, best = value_of(summary, "speedup"), value_of(summary, "own", "num_workers"), value_of(summary, "best", "num_workers")
    if speedup is not None and own is not None and best is not None:
        return f"{_workers(best)} trained {speedup:.2f}x as fast as your own {own:.0f}"
    if training.decisions.empty:
        return "Nothing was decided" + ("" if training.is_over else " yet")
    reason = str(training.decisions.iloc[-1]["reason"])
    return reason[:1].upper() + reason[1:]


def answer(training: Training) -> Section:
    """Return the outcome and the facts that support it, one per row."""
    report, summary = training.report, _summary(training)
    rows: list[tuple[str, str]] = []
    for label, name in (("Your setting", "dataloader"), ("Best setting", "best")):
        if isinstance(setting := report.get(name), dict):
            rows.append((label, config_text(setting)))
    speedup, ci95 = value_of(summary, "speedup"), summary.get("speedup_ci95")
    if speedup is not None:
        interval = f" [{ci95[0]:.2f}-{ci95[1]:.2f}]" if isinstance(ci95, list) and len(ci95) == 2 and _are_numbers(ci95) else ""
        rows.append(("Speed-up", f"{speedup:.2f}x{interval}, measured while the settings took turns"))
    wait_s, step_s = training.course["wait_s"].sum(), training.course["step_s"].sum()
    num_batches = int(training.course["num_batches"].sum())
    if num_batches:
        rows.append(("Trained", f"{num_batches:,} batches in {duration(wait_s + step_s)}"))
        rows.append(("Waited for batches", f"{duration(wait_s)}, {_share(wait_s, wait_s + step_s)} of this time"))
    if (ranks := waits_of_training(summary)) is not None:
        rows.append(("Ranks", ranks.sentence))
    if (aside_s := training.course["aside_s"].sum()) > 0:
        rows.append(("Did something else", f"{duration(aside_s)} between two batches, such as validation"))
    if (lost_s := value_of(summary, "lost_s")) is not None:
        rows.append(("Lost by trying", f"{duration(lost_s)} with settings slower than the best one"))
    if isinstance(left := summary.get("left_alone"), str):
        rows.append(("Left alone because", left))
    return Section(caption="The outcome", headers=("", "Value"), rows=rows)


def settings_section(training: Training) -> Section:
    """Return each number of workers with all that was loaded with it."""
    rows = [
        (
            f"{row['num_workers']}", f"{row['num_batches']:,}", duration(row["trained_s"]),
            "" if pd.isna(row["batches_per_s"]) else number(row["batches_per_s"]),
            "" if pd.isna(row["wait_fraction"]) else f"{row['wait_fraction']:.1%}",
        )
        for row in by_setting(training).to_dict("records")
    ]  # fmt: skip
    headers = ("Workers", "Batches", "Time", "Batches/s", "Waiting")
    return Section(caption="All batches of each number of workers, with the unsteady ones after a change", headers=headers, rows=rows, numeric=frozenset(headers))


def decisions_section(training: Training) -> Section:
    """Return every decision in its order."""
    rows = [
        (duration(row["time_s"]), f"{row['step']:,}", str(row["num_workers"]), str(row["kind"]), str(row["reason"]))
        for row in training.decisions.to_dict("records")
    ]
    headers = ("Time", "Batch", "Workers", "Decision", "Reason")
    return Section(caption="Each decision, and the number of workers from then on", headers=headers, rows=rows, numeric=frozenset(headers[:3]))


def machine(training: Training) -> Section:
    """Return where the training ran."""
    facts = training.report.get("measured_on")
    held = dict(facts) if isinstance(facts, Mapping) else {}
    versions = held.pop("versions", None)
    return Section(caption="Machine and versions", headers=("", "Value"), rows=[*fact_rows(held), *fact_rows(versions)])


def _summary(training: Training) -> Mapping[str, Any]:
    summary = training.report.get("summary")
    return summary if isinstance(summary, Mapping) else {}


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "0 %"


def _workers(num: float) -> str:
    return "1 worker" if num == 1 else f"{num:.0f} workers"
