"""`rank_shares`: how long each rank of a training with several waits for its loader, with each setting."""

from __future__ import annotations

import pandas as pd

from feedrate.analysis.ranks import PERSISTENT_FRACTION
from feedrate.analysis.run import Run
from feedrate.analysis.summary import counted, ranking
from feedrate.analysis.tables import WINDOW_KEY, frame


def rank_shares(run: Run) -> pd.DataFrame:
    """Return how long each rank waits for its loader, one row per setting and rank, the fastest setting first; no rows for trainings in one process.

    `wait_fraction` is the share of the time in the windows of all trials that count. The rank waits longest of all in `slowest_fraction` of the
    windows; `is_slowest` is whether that is nearly every window, which says that its host, its CPUs or its part of the data is slow.

    Example:
        >>> from feedrate.analysis import load_run, rank_shares
        >>> rank_shares(load_run("docs/example-run")).empty
        True
    """
    order = {config: place for place, config in enumerate(ranking(run)["config"])}
    windows = run.rank_windows.merge(counted(run)[[*WINDOW_KEY]], how="inner")
    rows = []
    for config, group in windows.groupby("config", sort=False):
        longest = group.groupby([*WINDOW_KEY, "window"], dropna=False)["wait_s"].transform("max")
        group = group.assign(is_longest=group["wait_s"] >= longest)
        for rank, mine in group.groupby("rank"):
            slowest = float(mine["is_longest"].mean())
            rows.append(
                {
                    "config": config, "rank": rank, "wait_fraction": mine["wait_s"].sum() / mine["duration_s"].sum(),
                    "slowest_fraction": slowest, "is_slowest": slowest >= PERSISTENT_FRACTION, "num_windows": len(mine),
                }
            )  # fmt: skip
    rows.sort(key=lambda row: (order[row["config"]], row["rank"]))
    fractions = dict.fromkeys(("wait_fraction", "slowest_fraction"), "float64")
    return frame(rows, {"config": "str", "rank": "Int64", **fractions, "is_slowest": "boolean", "num_windows": "Int64"})
