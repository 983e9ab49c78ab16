"""`Training`: what `feedrate train` or `live(loader)` left in its folder, as tables."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from feedrate.analysis.best import best_if_usable
from feedrate.analysis.clean import printable
from feedrate.analysis.run_folder import RunError, RunFolder, read_object
from feedrate.analysis.tables import frame

TRAINING_SCHEMA = "feedrate/train/1"
RATE = "rate"
"""What a line of live.jsonl has instead of the kind of a decision if it is a stretch of the training."""
_STRETCH = {"num_workers": "Int64", "step": "Int64", "num_batches": "Int64", "time_s": "float64", "wait_s": "float64", "step_s": "float64", "aside_s": "float64"}
_DECISION = {"kind": "str", "num_workers": "Int64", "reason": "str", "step": "Int64", "time_s": "float64"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Training:
    """The content of a training's folder."""

    path: Path
    report: dict[str, Any]
    """The content of train.json; empty for `live(loader)`, which writes none."""
    best: dict[str, Any] | None
    """The content of best.json; None if there is none."""
    course: pd.DataFrame
    """One row per stretch of the training with one number of workers; `batches_per_s` and `wait_fraction` are computed from the others."""
    decisions: pd.DataFrame
    """One row per decision."""
    problems: list[str]
    """One sentence for each thing that was left out."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes: the training has ended by itself, or `feedrate train` has written its answer."""
        return self.best is not None or self.report.get("is_over") is not False


def load_training(path: str | os.PathLike[str]) -> Training:
    """Read the folder of a training, even while it goes on.

    Raises:
        RunError: the folder has no training, or another version of feedrate wrote it.
    """
    folder, problems = RunFolder(path), list[str]()
    if not folder.is_training():
        raise RunError(f"{folder.path} has no training: it has neither train.json nor live.jsonl")
    report: dict[str, Any] = {}
    if folder.training.exists():
        report = printable(read_object(folder.training))
        if report.get("schema") != TRAINING_SCHEMA:
            reads = f"this feedrate reads {TRAINING_SCHEMA!r}. Install the version that wrote it"
            raise RunError(f"{folder.training} has schema {report.get('schema')!r}; {reads}")
    lines = _lines(folder.live, problems)
    decisions = [each for each in lines if each["kind"] != RATE]
    return Training(
        path=folder.path,
        report=report,
        best=best_if_usable(folder, problems),
        course=_course([each for each in lines if each["kind"] == RATE]),
        decisions=frame(decisions, _DECISION),
        problems=problems,
    )


def _lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Return the lines of the latest training in live.jsonl: `live(loader, folder=...)` appends to what is there."""
    found: list[dict[str, Any]] = []
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return found
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    num_before = 0
    for position, text in enumerate(data.split(b"\n"), start=1):
        if not text.strip():
            continue
        line = _line(text)
        if line is None:
            problems.append(f"line {position} of {path.name} is torn or damaged and was skipped")
            continue
        if found and line["step"] < found[-1]["step"]:
            num_before, found = num_before + 1, []
        found.append(line)
    if num_before:
        problems.append(f"{num_before} earlier training(s) in {path.name}: only the latest one is shown")
    return found


def _line(text: bytes) -> dict[str, Any] | None:
    """Return a line of live.jsonl if all fields that are shown make sense, else None."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return None
    needed = _STRETCH if line["kind"] == RATE else _DECISION
    for name, dtype in needed.items():
        value = line.get(name)
        if dtype == "str":
            if not isinstance(value, str):
                return None
        elif isinstance(value, bool) or not isinstance(value, int if dtype == "Int64" else int | float) or not (0 <= value < 2**63 and math.isfinite(value)):
            return None
    return dict(printable(line))


def _course(stretches: list[dict[str, Any]]) -> pd.DataFrame:
    course = frame(stretches, _STRETCH)
    return _with_rates(course, course["wait_s"] + course["step_s"])


def _with_rates(course: pd.DataFrame, trained_s: pd.Series[Any]) -> pd.DataFrame:
    """Add batches per second and the share of waiting; both are missing where no time passed."""
    known = trained_s > 0
    course["batches_per_s"] = (course["num_batches"].astype("float64") / trained_s).where(known)
    course["wait_fraction"] = (course["wait_s"] / trained_s).where(known)
    return course


def by_setting(training: Training) -> pd.DataFrame:
    """Return one row per number of workers, with everything that was loaded with it."""
    columns = ["num_batches", "wait_s", "step_s"]
    found = training.course.groupby("num_workers")[columns].sum().reset_index()
    found["trained_s"] = found["wait_s"] + found["step_s"]
    return _with_rates(found, found["trained_s"])


def value_of(holder: Mapping[str, Any], *path: str) -> float | None:
    """Return a finite number inside an object that was read from a file; None if there is none."""
    value: Any = holder
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
