"""`Run`: the content of a run folder as pandas tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from feedrate.analysis.ceilings import LOAD, Ceilings, is_disturbed
from feedrate.analysis.estimate import Rate


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """The content of a run folder as tables."""

    path: Path
    search: dict[str, Any]
    """The content of search.json: the options of the search, the workload and the machine."""
    trials: pd.DataFrame
    """One row per record: the scalar columns of analysis/schema.py, and columns that are computed from its windows."""
    windows: pd.DataFrame
    """One row per timed window."""
    rank_windows: pd.DataFrame
    """One row per timed window and rank of trainings with several: the time that the rank waited for its loader, its other time, and its items."""
    best: dict[str, Any] | None
    """The content of best.json; None while there is no such file."""
    problems: list[str]
    """One sentence for each thing that was left out."""
    rank: Callable[[Run], pd.DataFrame]
    """The function that makes `configs`: `summary.ranking`, which itself needs this class."""

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self.trials)} measurements{', unfinished' if self.unfinished else ''})"

    @property
    def latest(self) -> pd.DataFrame:
        """The trials that count: if a trial was tried again, only its last attempt."""
        return self.trials[~self.trials["superseded"]]

    @property
    def configs(self) -> pd.DataFrame:
        """One row per setting, the fastest first; trials of the same setting are pooled into one rate with one interval (see `summary.ranking`)."""
        return self.rank(self)

    @property
    def failures(self) -> pd.DataFrame:
        """The rows of `trials` that failed, including those of earlier attempts."""
        return self.trials[self.trials["status"] == "failed"]

    @property
    def ceilings(self) -> dict[int | None, float]:
        """Batch size -> items per second of the training step alone, if known (ceilings.py)."""
        return self.ceilings_found.known()

    @property
    def ceilings_found(self) -> Ceilings:
        """The ceiling at each batch size, and the reason if it is not known."""
        found = Ceilings()
        names = ("batch_size", "step_only_sps", "steady_sps", "steady_low_sps", "steady_high_sps", "cached_batch_failure", *LOAD)
        for row in self.latest[[*names]].astype(object).where(self.latest[[*names]].notna(), None).to_dict("records"):
            size, sps, step_sps = row["batch_size"], row["steady_sps"], row["step_only_sps"]
            rate = None if sps is None else Rate(sps=sps, low_sps=row["steady_low_sps"], high_sps=row["steady_high_sps"])
            is_unread = row["cached_batch_failure"] is not None
            found.learn(None if size is None else int(size), step_sps, rate, disturbed=is_disturbed(row), unread=is_unread)
        return found

    @property
    def copies(self) -> dict[tuple[int | None, bool], float]:
        """Batch size and pin_memory -> median items per second of copying batches to the accelerator alone."""
        known = self.latest.dropna(subset=["copy_only_sps"])
        rates = known.groupby(["batch_size", "pin_memory"], dropna=False)["copy_only_sps"].median().reset_index()
        return {
            (None if pd.isna(row["batch_size"]) else int(row["batch_size"]), bool(row["pin_memory"])): float(row["copy_only_sps"])
            for _, row in rates.iterrows()
        }

    @property
    def unit(self) -> str:
        """The name of an item, for people: samples, unless the workload counts something else."""
        workload = self.search.get("workload")
        unit = workload.get("unit") if isinstance(workload, dict) else None
        return unit if isinstance(unit, str) and unit else "samples"

    @property
    def unfinished(self) -> bool:
        """Whether more measurements may come: search.json does not say that the search is finished, and there is no final best.json either."""
        return self.best is None and self.search.get("finished") is not True
