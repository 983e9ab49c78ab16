"""`SearchResult`: what a search found, computed from the records of its run folder. answers/wording.py prints it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from feedrate.analysis.best import write_best
from feedrate.analysis.load import load_run
from feedrate.analysis.rounds import TIED_FRACTION, Standing
from feedrate.analysis.run_folder import RunFolder
from feedrate.analysis.setting_cost import cheapest
from feedrate.analysis.summary import cost_of, may_win, ranking, same, standing_of
from feedrate.search.best_json import best_content


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """What a search found. `best` is the content of best.json, None if no setting worked."""

    folder: Path
    best: dict[str, Any] | None
    ranking: pd.DataFrame
    """One row per setting, the fastest first; see feedrate.analysis.summary.ranking."""
    failures: pd.DataFrame
    """One row per failed trial."""
    stop_reason: str | None
    """Why the search ended; None when it was interrupted."""

    @property
    def dataloader(self) -> dict[str, Any]:
        """Keyword arguments for DataLoader: `DataLoader(dataset, **result.dataloader)`.

        Raises:
            ValueError: no setting worked; see `failures`.
        """
        if self.best is None:
            raise ValueError("no setting of this search worked; see .failures")
        dataloader: dict[str, Any] = self.best["dataloader"]
        return dataloader

    @property
    def baseline_failures(self) -> pd.DataFrame:
        """The failed trials of the baseline at the answer's batch size, or at any size if it was measured at none; one row per host.

        Empty if the baseline was measured at the answer's batch size, or if no setting worked.
        """
        if self.best is None or self.best["baseline"] is not None:
            return self.failures.iloc[:0]
        failed = self.failures[(self.failures["origin"] == "baseline") & (self.failures["kind"] == "search")]
        at_its_size = failed[same(failed["batch_size"], self.best["dataloader"].get("batch_size"))]
        measured = self.ranking["is_baseline"] & (self.ranking["status"] == "complete")
        return failed if at_its_size.empty and not measured.any() else at_its_size

    @property
    def best_path(self) -> Path:
        """Path of best.json."""
        return RunFolder(self.folder).best

    @property
    def verdict(self) -> str | None:
        """Which resource limits the rate of the best setting; None if no setting worked."""
        return self.best["verdict"] if self.best else None


def conclude(folder: RunFolder, stop_reason: str | None) -> SearchResult:
    """Read a run's records, choose the answer, and write best.json if there is an answer and the search is over."""
    run = load_run(folder.path)
    ranked = ranking(run)
    complete = ranked[(ranked["status"] == "complete") & may_win(run, ranked)]
    where = standing_of(run, ranked)
    best = None if complete.empty else best_content(run, ranked, pick(complete, where), where)
    if best is not None and stop_reason is not None:
        best["search"]["is_final"] = True
        write_best(folder.best, best)
    return SearchResult(folder=folder.path, best=best, ranking=ranked, failures=run.failures, stop_reason=stop_reason)


def write_so_far(folder: RunFolder) -> None:
    """Write best.json for a search that goes on, if a setting has worked. It is for other programs: feedrate's own commands read trials.jsonl until the search ends."""
    best = conclude(folder, None).best
    if best is not None:
        best["search"]["is_final"] = False
        write_best(folder.best, best)


def pick(complete: pd.DataFrame, where: Standing | None = None) -> pd.Series[Any]:
    """Return the cheapest setting within 2 % of the fastest, at the batch size of the fastest (setting_cost.py says what is cheaper).

    If there were confirmation rounds, they decide. Otherwise the fastest setting is chosen as in `finalists.leading`, if it is surely faster
    than the baseline, or is the baseline. If it is not, the one with the highest lower bound is taken instead. If the result is neither
    significantly faster nor cheaper than the baseline, the baseline is returned: a change would not be worth it.
    """
    if where is not None:
        return _or_baseline(complete, complete[complete["config"] == where.answer].iloc[0])
    low_sps = complete["throughput_low_sps"]
    leading_sps = complete["throughput_sps"].where(complete["change_fraction"].fillna(0.0) == 0.0, low_sps)
    place = int(leading_sps.to_numpy().argmax())
    leading = complete.iloc[place]
    if not leading["is_baseline"] and not _is_surely_faster(complete, leading):
        place = int(low_sps.to_numpy().argmax())
    return _worth_changing(complete, place, leading_sps)


def _is_surely_faster(complete: pd.DataFrame, row: pd.Series[Any]) -> bool:
    """Return whether a setting is faster than the baseline with 95 % confidence: at its batch size, or than the fastest one where that was not measured."""
    if pd.notna(row["speedup_low"]):
        return bool(row["speedup_low"] > 1)
    yours = complete[complete["is_baseline"]]
    return not yours.empty and bool(row["throughput_low_sps"] > yours["throughput_sps"].max())


def _worth_changing(complete: pd.DataFrame, place: int, sps: pd.Series[float]) -> pd.Series[Any]:
    """Return the cheapest setting within 2 % of the fastest, else the fastest, else the baseline: the first one that is worth a change.

    Args:
        place: where the fastest is in `complete`.
        sps: the rates that are compared, in the order of `complete`.
    """
    fastest, fastest_sps = complete.iloc[place], float(sps.iloc[place])
    tied = complete[same(complete["batch_size"], fastest["batch_size"]) & (sps >= fastest_sps * (1 - TIED_FRACTION))]
    frugal = tied.iloc[cheapest([cost_of(row) for _, row in tied.iterrows()])]
    answer = _or_baseline(complete, frugal)
    return answer if answer is frugal else _or_baseline(complete, fastest)


def _or_baseline(complete: pd.DataFrame, chosen: pd.Series[Any]) -> pd.Series[Any]:
    """Return the baseline at the same batch size if the chosen setting is neither significantly faster nor cheaper, else the setting."""
    yours = complete[same(complete["batch_size"], chosen["batch_size"]) & complete["is_baseline"]]
    if yours.empty or not chosen["speedup_low"] <= 1:
        return chosen
    baseline: pd.Series[Any] = yours.iloc[0]
    costs = [replace(cost_of(row), memory_bytes=0.0) for row in (chosen, baseline)]  # a little less memory is no reason to change
    return chosen if costs[0].is_below(costs[1]) else baseline
