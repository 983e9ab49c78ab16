"""The differences between the supported versions of pandas, in one place.

Each entry names the version at which it can go: when pyproject.toml no longer allows an older one. Columns of text have dtype
`str` from pandas 3 on and `object` before, which no code of ours looks at.
"""

from __future__ import annotations

from typing import Any

import pandas as pd


def median(column: pd.Series[Any]) -> Any:
    """Return the median of the values that are not missing; missing where there is none.

    Goes with pandas 3 as the oldest: pandas 2 warns "Mean of empty slice" where every value is missing.
    """
    return column.dropna().median()
