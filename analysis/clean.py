"""Clean trial records: leave out and report values that make no sense, so that one bad value does not make a run unreadable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from feedrate.analysis.schema import COLUMN, COLUMNS, Column, fits

WINDOW_COLUMNS = tuple(column.name for column in COLUMNS if column.name.startswith("window_"))
_OPTIONAL = ("window_wait_s", "window_step_s")
"""Columns of windows that a record need not have."""
_LEAST = {"nice": -20, "tree_uss_growth_bytes_per_batch": -(2**63), "sample_correlation": -1}
"""The smallest value of the columns that may be negative."""


def clean(record: dict[str, Any], position: int, problems: list[str]) -> dict[str, Any] | None:
    """Return the record with every senseless value set to None; None if a required value makes no sense."""
    name = label(record) if fits(record.get("number"), "int") else f"record {position} of trials.jsonl"
    kept: dict[str, Any] = {}
    for column in COLUMNS:
        value = printable(record.get(column.name))
        if value is not None and not _sensible(value, column):
            problems.append(f"{name}: {str(value)[:40]} is no possible value of {column.name} and was left out")
            value = None
        if value is None and column.required:
            problems.append(f"{name} was skipped: it has no usable {column.name}")
            return None
        kept[column.name] = value
    unknown = sorted(set(record) - set(COLUMN))
    if unknown:
        problems.append(f"{name}: unknown columns were ignored: {', '.join(map(printable, unknown))}")
    windows = {column: kept[column] for column in WINDOW_COLUMNS if column not in _OPTIONAL or kept[column]}
    if len({len(values or ()) for values in windows.values()}) > 1:
        problems.append(f"{name}: its windows contradict each other and were left out")
        kept |= dict.fromkeys(WINDOW_COLUMNS)
    return kept


def _sensible(value: Any, column: Column) -> bool:
    """Whether a value has the right type, is finite, and is not negative (only _LEAST may be)."""
    if not fits(value, column.dtype):
        return False
    numbers = value if isinstance(value, list) else [value]
    least = _LEAST.get(column.name, 0)
    return all(
        least <= number < 2**63 and math.isfinite(number) for number in numbers if isinstance(number, (int, float))
    )


def label(record: Mapping[str, Any]) -> str:
    """Return the name of a record, for sentences."""
    attempt = record.get("attempt")
    if record.get("kind") == "confirm":
        return f"round {record['number']} position {record.get('position')}"
    return f"trial {record['number']}" + (f" attempt {attempt}" if attempt != 1 else "")


def printable(value: Any) -> Any:
    """Return the value with lone surrogates (from file names that are not text) escaped, because Arrow and UTF-8 refuse them."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [printable(element) for element in value]
    if isinstance(value, dict):
        return {printable(key): printable(element) for key, element in value.items()}
    return value
