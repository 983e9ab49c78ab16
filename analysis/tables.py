"""The columns of a run's tables with their pandas dtypes, and a function that makes tables with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from feedrate.analysis.clean import WINDOW_COLUMNS
from feedrate.analysis.schema import COLUMN, COLUMNS

_DTYPES = {"str": "str", "int": "Int64", "float": "float64", "bool": "boolean"}
_DERIVED = {
    "status": "str", "config": "str", "superseded": "bool",
    "steady_sps": "float64", "steady_low_sps": "float64", "steady_high_sps": "float64", "naive_sps": "float64",
    "throughput_sps": "float64", "throughput_low_sps": "float64", "throughput_high_sps": "float64",
    "wait_fraction": "float64", "step_only_sps": "float64", "copy_only_sps": "float64",
    "epoch_memory_bytes": "float64", "change_fraction": "float64",
    "slowest_rank": "Int64",
}  # fmt: skip
TRIAL_DTYPES = {column.name: _DTYPES[column.dtype] for column in COLUMNS if column.dtype in _DTYPES} | _DERIVED
OF_A_WINDOW = {name.removeprefix("window_"): _DTYPES[COLUMN[name].dtype[5:-1]] for name in WINDOW_COLUMNS}
WINDOW_KEY = ("study", "kind", "number", "attempt", "position", "config")
RANK_WINDOW_DTYPES = {name: TRIAL_DTYPES[name] for name in WINDOW_KEY} | {
    "window": "Int64", "rank": "Int64", "duration_s": "float64", "wait_s": "float64", "step_s": "float64", "num_items": "Int64",
}  # fmt: skip
WINDOW_DTYPES = {name: TRIAL_DTYPES[name] for name in WINDOW_KEY} | {"window": "Int64"} | OF_A_WINDOW


def frame(rows: Iterable[Mapping[str, Any]], dtypes: Mapping[str, str]) -> pd.DataFrame:
    """Return a table with exactly these columns and dtypes; a value that a row lacks is missing."""
    held = list(rows)
    columns = dtypes.items()
    return pd.DataFrame({name: pd.Series([row.get(name) for row in held], dtype=dtype) for name, dtype in columns})
