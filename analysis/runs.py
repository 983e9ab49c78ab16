"""Several runs: `load_runs` reads the runs that a pattern names, `runs_table` has one row per run."""

from __future__ import annotations

import fnmatch
import glob
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from feedrate.analysis.load import load_run
from feedrate.analysis.remote import children, is_url, read_url
from feedrate.analysis.run import Run
from feedrate.analysis.run_folder import RunError
from feedrate.analysis.setting import setting_text
from feedrate.analysis.summary import ranking
from feedrate.analysis.tables import frame

_DTYPES = {
    "run": "str", "workload": "str", "created": "datetime64[s, UTC]", "hostname": "str", "state": "str", "config": "str",
    "throughput_sps": "float64", "speedup": "float64", "speedup_low": "float64", "speedup_high": "float64",
    "confirmed": "boolean", "num_trials": "Int64", "num_failed": "Int64",
}  # fmt: skip


def load_runs(pattern: str) -> list[Run]:
    """Return every run that a pattern names, the oldest first.

    Args:
        pattern: matches folders, as in `feedrate-runs/*`, or addresses, as in `s3://bucket/*`; or names the folder that contains
            the runs, or contains a folder feedrate-runs with them.

    Raises:
        RunError: the pattern names no run.

    Warns:
        UserWarning: a run that cannot be read was left out.

    Example:
        >>> from feedrate.analysis import load_runs
        >>> [run.path.name for run in load_runs("docs/example-*")]
        ['example-run']
    """
    runs, broken = [], []
    for path in _paths(pattern):
        try:
            runs.append(load_run(path))
        except RunError as error:
            broken.append(error)
    if not runs and broken:
        raise RunError(f"{pattern} matches no run that can be read: {broken[0]}")
    for each in broken:
        warnings.warn(f"left out: {each}", stacklevel=2)
    if not runs:
        raise RunError(f"{pattern} matches no run. A search writes to feedrate-runs/NAME, or to the folder of --out")
    return sorted(runs, key=lambda run: (_number(run.search.get("created_unix_s")) or 0.0, str(run.path)))


def runs_table(runs: Iterable[Run]) -> pd.DataFrame:
    """Return one row per run: what was searched when and where, how far the search came, and its answer.

    `state` is finished, unfinished (the search goes on, or was interrupted) or nothing works. While there is no best.json,
    the fastest setting so far takes its place, not confirmed.

    Example:
        >>> from feedrate.analysis import load_runs, runs_table
        >>> list(runs_table(load_runs("docs/example-*"))["state"])
        ['finished']
    """
    return frame(map(_row, runs), _DTYPES)


def run_folders(pattern: str) -> list[Path]:
    """Return the local run folders that a pattern names, including those of a search on several hardware classes (RUN/CLASS).

    Args:
        pattern: matches folders, or names the folder that contains them.

    Raises:
        RunError: the pattern names no run.
    """
    found = [Path(path) for path in _paths(pattern)]
    below = Path(pattern) if Path(pattern).is_dir() and not (Path(pattern) / "search.json").exists() else None
    for parent in sorted(below.iterdir()) if below is not None else map(Path, sorted(glob.glob(pattern))):
        if parent.is_dir() and not parent.is_symlink() and not (parent / "search.json").exists():
            found += sorted(path for path in parent.iterdir() if (path / "search.json").is_file())
    if not found:
        raise RunError(f"{pattern} matches no run here. A search writes to feedrate-runs/NAME, or to the folder of --out")
    return list(dict.fromkeys(found))


def _paths(pattern: str) -> list[str]:
    if not is_url(pattern):
        folder = Path(pattern)
        inside = folder.is_dir() and not (folder / "search.json").exists()
        patterns = [f"{glob.escape(pattern)}/*", f"{glob.escape(pattern)}/feedrate-runs/*"] if inside else [pattern]
        found = sorted(path for each in patterns for path in glob.glob(each))
        return [path for path in found if (Path(path) / "search.json").is_file()]
    parent, _, last = pattern.rstrip("/").rpartition("/")
    if glob.has_magic(last):
        found = [address for address in children(parent) if fnmatch.fnmatchcase(address.rpartition("/")[2], last)]
    elif _is_run(pattern):
        return [pattern]
    else:
        found = children(pattern)
    return [address for address in found if _is_run(address)]


def _is_run(address: str) -> bool:
    try:
        read_url(f"{address.rstrip('/')}/search.json")
    except (FileNotFoundError, RunError):
        return False
    return True


def _row(run: Run) -> dict[str, Any]:
    searched = run.latest[run.latest["kind"] != "confirm"]
    created = _number(run.search.get("created_unix_s"))
    row: dict[str, Any] = {
        "run": str(run.path),
        "workload": _text(run.search.get("workload"), "name"),
        "created": None if created is None else pd.Timestamp(int(created), unit="s", tz="UTC"),
        "hostname": _text(run.search.get("hardware"), "hostname") or next(iter(run.trials["hostname"].dropna()), None),
        "state": "unfinished" if run.unfinished else "finished",
        "num_trials": len(searched),
        "num_failed": int((searched["status"] == "failed").sum()),
        "confirmed": False,
    }
    if run.best is not None:
        baseline = run.best["baseline"] or {}
        low, high = baseline.get("speedup_ci95", (None, None))
        return row | {
            "config": setting_text(run.best),
            "throughput_sps": run.best["throughput"]["samples_per_second"],
            "speedup": baseline.get("speedup"), "speedup_low": low, "speedup_high": high,
            "confirmed": run.best["confirmed"],
        }  # fmt: skip
    ranked = ranking(run)
    if ranked.empty:
        return row | ({} if run.unfinished else {"state": "nothing works"})
    names = ("config", "throughput_sps", "speedup", "speedup_low", "speedup_high")
    return row | {name: ranked.iloc[0][name] for name in names}


def _text(holder: object, name: str) -> str | None:
    value = holder.get(name) if isinstance(holder, dict) else None
    return value if isinstance(value, str) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
