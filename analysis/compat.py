"""The differences between the supported versions of pandas, in one place.

Each entry names the version with which it can be removed: when pyproject.toml no longer allows an older one. Columns of text have
dtype `str` from pandas 3 on and `object` before; feedrate's code never depends on this dtype.
"""

from __future__ import annotations

from typing import Any

import pandas as pd


def median(column: pd.Series[Any]) -> Any:
    """Return the median of the values that are not missing; a missing value if there are none.

    Can be removed when pandas 3 is the oldest supported version: pandas 2 warns "Mean of empty slice" if every value is missing.
    """
    return column.dropna().median()
