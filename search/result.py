"""`SearchResult`: what a search found, made from the records of its run folder, and the table that it prints."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from feedrate.analysis.best import BEST_SCHEMA, python_snippet, write_best
from feedrate.analysis.load import Run, load_run
from feedrate.analysis.run_folder import RunFolder
from feedrate.analysis.summary import best_by_batch_size, may_win, ranking
from feedrate.analysis.verdict import SHARED_FRACTION, judge
from feedrate.trainables.config import LoaderConfig

TIED_FRACTION = 0.02
"""Settings this close to the fastest are as good; the cheapest of them is the answer."""
GROWN_BYTES = 1e9
"""Memory at the end of an epoch below this is not worth a line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """What a search found; `best` is the content of best.json, None where nothing worked."""

    folder: Path
    best: dict[str, Any] | None
    ranking: pd.DataFrame
    """One row a setting, the fastest first; see feedrate.analysis.summary.ranking."""
    failures: pd.DataFrame
    """One row a failed trial."""
    stop_reason: str | None
    """Why the search ended; None when it was interrupted."""

    @property
    def dataloader(self) -> dict[str, Any]:
        """Keyword arguments for DataLoader: `DataLoader(dataset, **result.dataloader)`.

        Raises:
            ValueError: nothing worked; see `failures`.
        """
        if self.best is None:
            raise ValueError("no setting of this search worked; see .failures")
        dataloader: dict[str, Any] = self.best["dataloader"]
        return dataloader

    @property
    def best_path(self) -> Path:
        """Where best.json lies."""
        return RunFolder(self.folder).best

    @property
    def verdict(self) -> str | None:
        """Where the time goes with the best setting."""
        return self.best["verdict"] if self.best else None


def conclude(folder: RunFolder, stop_reason: str | None) -> SearchResult:
    """Read a run's records, choose the answer, and write best.json when there is one and the search is over."""
    run = load_run(folder.path)
    ranked = ranking(run)
    complete = ranked[(ranked["status"] == "complete") & may_win(run, ranked)]
    best = None if complete.empty else _best(run, complete, pick(complete))
    if best is not None and stop_reason is not None:
        write_best(folder.best, best)
    return SearchResult(folder=folder.path, best=best, ranking=ranked, failures=run.failures, stop_reason=stop_reason)


def pick(complete: pd.DataFrame) -> pd.Series[Any]:
    """The cheapest setting within 2 % of the fastest, at the fastest one's batch size: fewest workers, then memory.

    The fastest is the one with the highest lower bound, not the luckiest value.
    """
    fastest = complete.sort_values("throughput_low_sps", ascending=False, kind="stable").iloc[0]
    same_size = _same(complete["batch_size"], fastest["batch_size"])
    tied = complete[same_size & (complete["throughput_sps"] >= fastest["throughput_sps"] * (1 - TIED_FRACTION))]
    cheapest_first = tied.sort_values(["num_workers", "prefetch_factor", "tree_pss_bytes"], kind="stable", na_position="first")
    cheapest: pd.Series[Any] = cheapest_first.iloc[0]
    return cheapest


def _same(column: pd.Series[Any], value: Any) -> pd.Series[bool]:
    return column.isna() if pd.isna(value) else (column == value).fillna(False).astype(bool)


def _best(run: Run, complete: pd.DataFrame, chosen: pd.Series[Any]) -> dict[str, Any]:
    trial = run.latest[(run.latest["config"] == chosen["config"]) & (run.latest["status"] == "complete")].iloc[-1]
    size = None if pd.isna(chosen["batch_size"]) else int(chosen["batch_size"])
    ceiling_sps = run.ceilings.get(size)
    same_size = complete[_same(complete["batch_size"], chosen["batch_size"])]
    baseline = same_size[same_size["is_baseline"]]
    tied = same_size[
        (same_size["throughput_sps"] >= chosen["throughput_sps"] * (1 - TIED_FRACTION))
        & (same_size["config"] != chosen["config"])
    ]
    workload, hardware = run.search.get("workload", {}), run.search.get("hardware", {})
    options = run.search.get("options", {})
    threads = options.get("threads")
    fraction = None if ceiling_sps is None else float(trial["steady_sps"]) / ceiling_sps
    verdict = judge(_facts(trial) | {"copy_only_sps": run.copies.get((size, bool(chosen["pin_memory"])))}, ceiling_sps)
    return {
        "schema": BEST_SCHEMA,
        "dataloader": _config(chosen).to_kwargs(),
        "process": _config(chosen).to_process(threads),
        "throughput": _throughput(chosen) | {"unit": workload.get("unit", "samples"), "per": "rank"},
        "baseline": None if baseline.empty else _baseline(chosen, baseline.iloc[0], threads),
        "ceiling": None
        if ceiling_sps is None
        else {"step_only_samples_per_second": ceiling_sps, "fraction_of_ceiling": fraction},
        "verdict": verdict.name,
        "verdict_evidence": list(verdict.evidence),
        "memory": {"pss_bytes": _float(trial["tree_pss_bytes"]), "end_of_epoch_bytes": _float(trial["epoch_memory_bytes"])},
        "confirmed": False,
        "tied_with": [_config(row).to_kwargs() | _needs(_config(row), threads) for _, row in tied.iterrows()],
        "best_by_batch_size": {
            str(int(row["batch_size"])): _entry(row, threads) | _throughput(row)
            for _, row in best_by_batch_size(run).iterrows()
            if not pd.isna(row["batch_size"])
        },
        "scope": {
            "ranks_per_host": 1,
            "world_size": 1,
            "cpus_per_rank": run.search.get("placement", {}).get("cpus"),
            "exclusive_host": (_float(trial["foreign_cpu_fraction"]) or 0.0) < SHARED_FRACTION,
            "foreign_cpu_fraction": _float(trial["foreign_cpu_fraction"]),
            "cache": _text(trial["cache_state"]),
        },
        "measured_on": {
            "hostname": _text(trial["hostname"]),
            "device": _text(trial["device"]),
            "device_name": _text(trial["device_name"]),
            "num_cpus": hardware.get("num_cpus"),
            "cpu_model": hardware.get("cpu_model"),
            "start_method": _text(trial["start_method"]),
            "versions": run.search.get("versions", {}),
        },
        "workload": workload,
        "search": {
            "study": run.search["study"],
            "objective": run.search.get("objective", "epoch"),
            "amp": options.get("amp"),
            "compile": options.get("compile", False),
            "disqualified": run.search.get("disqualified"),
            "num_trials": len(run.latest),
            "num_failed": len(run.failures),
            "created_unix_s": run.search.get("created_unix_s"),
        },
    }


def _facts(trial: pd.Series[Any]) -> dict[str, Any]:
    """What the verdict looks at, None where it is not known."""
    names = (
        "steady_sps", "step_only_sps", "wait_fraction", "own_cpu_fraction", "num_cpus", "num_workers",
        "throttled_fraction", "steal_fraction", "psi_io_fraction",
    )  # fmt: skip
    return {name: _float(trial[name]) for name in names} | {"cache_state": _text(trial["cache_state"])}


def _config(row: pd.Series[Any]) -> LoaderConfig:
    names = LoaderConfig.__dataclass_fields__
    fields: dict[str, Any] = {name: None if pd.isna(row[name]) else row[name] for name in names}
    for name in ("num_workers", "batch_size", "prefetch_factor", "trainer_cpus"):
        fields[name] = None if fields[name] is None else int(fields[name])
    for name in ("pin_memory", "persistent_workers", "in_order"):
        fields[name] = bool(fields[name])
    return LoaderConfig(**fields)


def _entry(row: pd.Series[Any], threads: int | None) -> dict[str, Any]:
    return {"dataloader": _config(row).to_kwargs()} | _needs(_config(row), threads)


def _needs(config: LoaderConfig, threads: int | None) -> dict[str, Any]:
    process = config.to_process(threads)
    return {"process": process} if process else {}


def _throughput(row: pd.Series[Any]) -> dict[str, Any]:
    low, high = float(row["throughput_low_sps"]), float(row["throughput_high_sps"])
    return {"samples_per_second": float(row["throughput_sps"]), "ci95": [low, high]}


def _baseline(chosen: pd.Series[Any], baseline: pd.Series[Any], threads: int | None) -> dict[str, Any]:
    return {
        **_entry(baseline, threads),
        "samples_per_second": float(baseline["throughput_sps"]),
        "speedup": float(chosen["speedup"]),
        "speedup_ci95": [float(chosen["speedup_low"]), float(chosen["speedup_high"])],
    }


def _float(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _text(value: Any) -> str | None:
    return None if pd.isna(value) else str(value)


def print_result(result: SearchResult, console: Console, unit: str = "samples") -> None:
    """The short table at the end of a search, why it is so, and what to paste."""
    best = result.best
    if best is None:
        return
    size = best["dataloader"].get("batch_size")
    ranked = result.ranking
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("", "left"),
        ("setting", "left"),
        (f"{unit}/s", "right"),
        ("95 % interval", "right"),
        ("vs yours", "right"),
        ("memory", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    same = ranked[(ranked["status"] == "complete") & _same(ranked["batch_size"], size)]
    chosen = _row_of(same, best["process"] | best["dataloader"])
    tied = [_row_of(same, entry.get("process", {}) | entry) for entry in best["tied_with"]]
    rows = [("yours", row) for _, row in same[same["is_baseline"]].iterrows() if row["config"] != chosen["config"]]
    rows += [("best" if not chosen["is_baseline"] else "best (yours)", chosen), *(("tied", row) for row in tied[:3])]
    for name, row in rows:
        memory = "" if pd.isna(row["tree_pss_bytes"]) else f"{row['tree_pss_bytes'] / 1e9:.1f} GB"
        interval = f"{row['throughput_low_sps']:,.0f}-{row['throughput_high_sps']:,.0f}"
        gain = "" if pd.isna(row["speedup"]) else f"{row['speedup']:.2f}x"
        if name == "best" and gain:
            gain += f" [{row['speedup_low']:.2f}-{row['speedup_high']:.2f}]"
        table.add_row(name, row["config"], f"{row['throughput_sps']:,.0f}", interval, gain, memory)
    console.print()
    console.print(table)
    console.print()
    for line in explain(result):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def explain(result: SearchResult) -> list[str]:
    """The sentences under the table."""
    best = result.best
    assert best is not None
    lines = []
    why = "; ".join(best.get("verdict_evidence", ()))
    lines.append(f"Why: {best['verdict']}" + (f": {why}" if why else ""))
    left_out = best["search"].get("disqualified")
    if left_out is not None:
        most, ranked = left_out["max_num_workers"], result.ranking
        lines.append(f"Left out: settings with more than {most} worker, where {left_out['reason']}; see feedrate check.")
        if (ranked["is_baseline"] & (ranked["num_workers"] > most)).any():
            lines.append("Yours is one of them: its rate counts repeated data, so that it cannot be the answer.")
    if result.ranking["is_baseline"].all() and left_out is None:
        command = shlex.join(["feedrate", "resume", str(result.folder)])
        lines.append(f"Only your own setting was measured: nothing is known about others. Try some with: {command}")
    elif best["verdict"] == "compute-bound" and best["baseline"] and best["baseline"]["speedup"] < 1.05:
        lines.append("The training step is the limit here: no loader setting makes a real difference.")
    elif best["baseline"] and best["baseline"]["speedup_ci95"][0] <= 1:
        lines.append("No significant gain over yours was seen.")
    lines += _not_the_fastest(result)
    by_size = best["best_by_batch_size"]
    if len(by_size) > 1:
        rates = " · ".join(f"b{size} {entry['samples_per_second']:,.0f}/s" for size, entry in by_size.items())
        lines.append(f"Best by batch size: {rates} (batch size changes training: --batch-size N fixes it; yours is compared at the best's)")
    for _, failure in result.failures.drop_duplicates("failure_message").head(3).iterrows():
        lines.append(f"Failed: {failure['config']}: {failure['failure_message']}")
    memory = best["memory"]["end_of_epoch_bytes"]
    if memory is not None and memory >= 1.2 * (best["memory"]["pss_bytes"] or 0) and memory >= GROWN_BYTES:
        grown = "a dataset of Python objects is copied by every worker that reads it"
        lines.append(f"Memory grows: {memory / 1e9:.1f} GB at the end of an epoch if it goes on as in the trial ({grown}).")
    foreign = best["scope"]["foreign_cpu_fraction"]
    if foreign is not None and foreign >= SHARED_FRACTION:
        lines.append(f"Shared host: other processes took {foreign:.0%} of the CPUs meanwhile; on a quiet one the rates differ.")
    step = [name for name, on in (("bfloat16 autocast", best["search"]["amp"]), ("torch.compile", best["search"]["compile"])) if on]
    if step:
        lines.append(f"The training step ran with {' and '.join(step)}: without, the ceiling and these rates are others.")
    if result.stop_reason:
        lines.append(f"Ended because {result.stop_reason}.")
    lines.append("Not confirmed: one measurement a setting, so that the best one is a little flattered by luck.")
    if best["process"]:
        names = ", ".join(best["process"])
        lines.append(f"`dataloader` alone does not reproduce this rate: the process needs {names} too, as below.")
    lines.append(("Paste:\n" if best["process"] else "Paste: ") + python_snippet(best))
    return lines


def _not_the_fastest(result: SearchResult) -> list[str]:
    """Why a setting that read more is not the answer, where there is one."""
    best = result.best
    assert best is not None
    ranked = result.ranking
    complete = ranked[ranked["status"] == "complete"]
    left_out = best["search"].get("disqualified")
    if left_out is not None:
        complete = complete[complete["num_workers"] <= left_out["max_num_workers"]]
    first, rate = complete.sort_values("throughput_sps", ascending=False).iloc[0], best["throughput"]
    if first["throughput_sps"] <= rate["samples_per_second"] * (1 + TIED_FRACTION):
        return []
    low, best_low = first["throughput_low_sps"], rate["ci95"][0]
    why = f"its interval begins at {low:,.0f}, that of the best at {best_low:,.0f}"
    what = f"{first['config']} read more, {first['throughput_sps']:,.0f}/s, and less surely"
    return [f"{what}: {why}. The higher beginning counts, or the luckiest reading would win."]


def _row_of(rows: pd.DataFrame, setting: dict[str, Any]) -> pd.Series[Any]:
    name = LoaderConfig.from_dict({"batch_size": None, **setting}).short()
    row: pd.Series[Any] = rows[rows["config"] == name].iloc[0]
    return row
