"""What a report says, section by section, as plain text cells: the same words on the page, in Markdown and on the terminal.

Nothing here is escaped; the code that writes HTML or Markdown does that.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from feedrate.analysis.disqualified import Disqualified
from feedrate.analysis.doubts import settle_command
from feedrate.analysis.estimate import LEAST_HEADROOM_FRACTION
from feedrate.analysis.rounds import DISTURBED_FRACTION, MIN_ROUNDS, TIED_FRACTION
from feedrate.analysis.run import Run
from feedrate.analysis.setting import setting_text
from feedrate.analysis.verdict import changing


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A table of text cells."""

    caption: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numeric: frozenset[str] = frozenset()
    """Headers whose cells are numbers."""
    why_empty: str = "nothing to show"
    """What is said instead of a table without rows."""


def title(run: Run) -> str:
    """Return the workload's name and the folder, which identify the run."""
    return f"{_text(run.search, 'workload', 'name') or 'unnamed workload'} · {run.path.name or run.path.resolve().name}"


def headline(run: Run, ranked: pd.DataFrame) -> str:
    """Return the answer in one sentence; `ranked` is `summary.ranking(run)`."""
    if run.best is not None:
        rate = run.best["throughput"]["samples_per_second"]
        text = f"{setting_text(run.best)} trains {number(rate)} {run.unit}/s"
        baseline = run.best["baseline"]
        if baseline is None:
            return text
        if setting_text(baseline) == setting_text(run.best):
            if ranked.empty or bool(ranked["is_baseline"].all()):
                return text + ": only the baseline was measured"
            is_sure = not run.best["search"].get("open")
            return text + (": the baseline is the best" if is_sure else ": no setting was shown to be faster than the baseline, but this is not certain")
        gain = f"{baseline['speedup']:.2f}x the baseline"
        return f"{text}, {gain}" if baseline["speedup_ci95"][0] > 1 else f"{text}: no significant gain ({gain})"
    if not ranked.empty:
        first = ranked.iloc[0]
        so_far = " so far" if run.unfinished else ""
        rate = f"{number(first['throughput_sps'])} {run.unit}/s"
        return f"{first['config']} is the fastest{so_far}: {rate}, not confirmed"
    failed = len(run.failures)
    if failed:
        yet = " yet" if run.unfinished else ""
        return f"Nothing that works was found{yet}: {plural(failed, 'trial')} failed, none was measured"
    return "No trial was measured" + (" yet" if run.unfinished else "")


def answer(run: Run, ranked: pd.DataFrame) -> Section:
    """Return the answer and the facts that support it, one per row."""
    rows: list[tuple[str, str]] = []
    if run.best is not None:
        rows += _best_rows(run.best, run.unit)
    elif not ranked.empty:
        first = ranked.iloc[0]
        rows += [("Setting", first["config"]), ("Throughput", f"{_interval(first, 'throughput')} {run.unit}/s")]
        if pd.notna(first["speedup"]):
            low, high = first["speedup_low"], first["speedup_high"]
            rows.append(("Speed-up", f"{first['speedup']:.2f}x the baseline [{low:.2f}-{high:.2f}]"))
        broken = any("best.json" in problem for problem in run.problems)
        rows.append(("Confirmed", "no: best.json cannot be used, see Left out" if broken else "no: there is no best.json"))
    searched = run.latest[run.latest["kind"] != "confirm"]
    counts = searched["status"].value_counts()
    told = ", ".join(f"{counts[name]} {name}" for name in ("complete", "pruned", "failed") if name in counts)
    rows.append(("Trials", told or "none yet"))
    if num_rounds := run.latest["round"].nunique():
        rows.append(("Rounds", f"{num_rounds}, in which the finalists and the baseline were measured again"))
    if run.best is not None and run.best["search"].get("num_disturbed"):
        rows.append(("Shared host", shared_host(run.best["search"])))
    if run.best is not None and (run.best["search"].get("most_foreign_gpu_fraction") or 0.0) >= DISTURBED_FRACTION:
        rows.append(("Shared GPU", shared_gpu(run.best["search"])))
    if run.best is not None and (at_once := run.best["scope"].get("trials_per_host", 1)) > 1:
        rows.append(("Trials at once", f"up to {sharing_host(at_once)}"))
    if run.best is not None and (higher := read_more(run.best, ranked)):
        rows.append(("Higher readings", higher))
    if run.best is not None and (is_open := run.best["search"].get("open")):
        rows.append(("Open", "; ".join(is_open)))
        resume = shlex.join(["feedrate", "resume", str(run.path)])
        rows.append(("To settle it", settle_command(run.best["search"]["settle"], run.search, run.latest, resume)))
    if isinstance(reason := run.search.get("stop_reason"), str):
        rows.append(("Ended because", reason))
    if (ranked["num_hosts"] > 1).any():
        rows.append(("Hosts", "a rate may be the average over several machines; the column Hosts of the ranking says over how many"))
    return Section(caption="The answer", headers=("", "Value"), rows=rows)


def ranking_section(run: Run, ranked: pd.DataFrame) -> Section:
    """Return every setting that has a rate, the fastest first."""
    numeric = (f"{run.unit}/s", "95 % interval", "Speed-up", "Waiting", "RAM", "Trials", "Hosts")
    rows = [
        (
            f"{row['config']} (baseline)" if row["is_baseline"] else str(row["config"]),
            number(row["throughput_sps"]),
            f"{number(row['throughput_low_sps'])}-{number(row['throughput_high_sps'])}",
            "" if pd.isna(row["speedup"]) else f"{row['speedup']:.2f}x",
            "" if pd.isna(row["wait_fraction"]) else f"{row['wait_fraction']:.0%}",
            "" if pd.isna(row["tree_pss_bytes"]) else size(row["tree_pss_bytes"]),
            str(row["num_trials"]),
            str(row["num_hosts"]),
            _status(row),
        )
        for row in ranked.to_dict("records")
    ]
    return Section(
        caption="Settings, the fastest first; speed-up against the baseline at the same batch size",
        headers=("Setting", *numeric, "Status"),
        rows=rows,
        numeric=frozenset(numeric),
    )


def _status(row: Mapping[Any, Any]) -> str:
    if row["status"] == "pruned":
        return "stopped early"
    if pd.notna(row["change_fraction"]) and row["change_fraction"]:
        return f"complete, {changing(row['change_fraction'])}"
    return "complete, not settled" if row["settled"] is False else str(row["status"])


def failures_section(run: Run) -> Section:
    """Return every failed trial and the reason."""
    told = ("config", "hostname", "failure_kind", "failure_phase", "failure_message")
    rows = [
        (
            f"{row['number']}" + (f" (attempt {row['attempt']})" if row["attempt"] > 1 else ""),
            *(str(row[name]) if pd.notna(row[name]) else "" for name in told),
        )
        for row in run.failures.to_dict("records")
    ]
    headers = ("Trial", "Setting", "Host", "Kind", "While", "Reason")
    return Section(caption="Trials that failed", headers=headers, rows=rows, numeric=frozenset({"Trial"}))


def machine(run: Run) -> Section:
    """Return machine and versions: first the facts in search.json, then the machines on which trials ran."""
    rows = [(name, str(value)) for name, value in fact_rows(run.search.get("hardware")) + fact_rows(run.search.get("versions"))]
    hosts = run.trials[["hostname", "device", "device_name", "num_cpus"]].drop_duplicates().dropna(subset=["hostname"])
    for host in hosts.to_dict("records"):
        facts = [str(host[name]) for name in ("device", "device_name") if pd.notna(host[name])]
        facts += [plural(int(host["num_cpus"]), "CPU")] if pd.notna(host["num_cpus"]) else []
        rows.append((f"trials on {host['hostname']}", ", ".join(facts)))
    return Section(caption="Machine and versions", headers=("", "Value"), rows=rows)


def repeat_command(run: Run) -> str | None:
    """Return the command that repeats the search, quoted for a shell; None if search.json does not contain it."""
    argv = run.search.get("argv")
    words = [str(word) for word in argv] if isinstance(argv, list) else []
    if not words:
        return _text(run.search, "command")
    if Path(words[0]).name == "feedrate":
        words[0] = "feedrate"
    elif words[0] in ("search", "resume"):
        words.insert(0, "feedrate")
    return shlex.join(words)


def number(value: float) -> str:
    """Format a rate for people, with thousands separators; a value below 100 has three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size(num_bytes: float) -> str:
    """Format bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"


def plural(count: int, noun: str) -> str:
    """Return count and noun, as in `1 trial`, `2 trials`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _best_rows(best: Mapping[str, Any], unit: str) -> list[tuple[str, str]]:
    throughput, baseline, ceiling = best["throughput"], best["baseline"], best["ceiling"]
    low, high = throughput["ci95"]
    rate = f"{number(throughput['samples_per_second'])} {unit}/s (95 % interval {number(low)}-{number(high)})"
    rows = [("Setting", setting_text(best))]
    if baseline:
        low, high = baseline["speedup_ci95"]
        against = f"{setting_text(baseline)} at {number(baseline['samples_per_second'])} {unit}/s"
        is_it = setting_text(baseline) == setting_text(best)
        rows.append(("Speed-up", "none: it is the baseline" if is_it else f"{baseline['speedup']:.2f}x [{low:.2f}-{high:.2f}] the baseline {against}"))
    else:
        rows.append(("Speed-up", "unknown: no baseline was measured"))
    rows.append(("Throughput", f"{rate} per {throughput['per']}"))
    if epoch := epoch_text(best, unit):
        rows.append(("Epoch", epoch))
    if ceiling:
        step_only = f"{number(ceiling['step_only_samples_per_second'])} {unit}/s of the training step alone"
        rows.append(("Ceiling", f"{ceiling['fraction_of_ceiling']:.0%} of the {step_only}"))
    evidence = [str(clause) for clause in best.get("verdict_evidence") or ()]
    rows.append(("Verdict", best["verdict"] + (f": {'; '.join(evidence)}" if evidence else "")))
    again = "yes, measured again against the baseline" if best["confirmed"] else "no, measured in the search only"
    rows.append(("Confirmed", again))
    if best["tied_with"]:
        rows.append(("Tied with", ", ".join(map(setting_text, best["tied_with"]))))
    if best["process"]:
        rows.append(("Also needed", "the DataLoader arguments alone do not reproduce the rate: " + "; ".join(
            f"{name} = {value}" for name, value in best["process"].items())))  # fmt: skip
    return rows


def epoch_text(best: Mapping[str, Any], unit: str) -> str | None:
    """Return how long an epoch takes with the baseline and with the answer; None if its length is not known."""
    num_items, objective = best["workload"].get("epoch_samples"), best["search"].get("objective", "epoch")
    if not isinstance(num_items, int) or objective != "epoch":
        return None
    times = [best["throughput"]["samples_per_second"]]
    if best["baseline"] and setting_text(best["baseline"]) != setting_text(best):
        times.insert(0, best["baseline"]["samples_per_second"])
    return f"{num_items:,} {unit}: " + " -> ".join(duration(num_items / sps) for sps in times)


def shared_host(facts: Mapping[str, Any]) -> str:
    """Say how much CPU time other processes took; `facts` is `search` of a best.json with `num_disturbed`."""
    return (
        f"during {facts['num_disturbed']} of {facts['num_measurements']} measurements other processes took "
        f"{DISTURBED_FRACTION:.0%} of the CPUs or more (up to {facts['most_foreign_cpu_fraction']:.0%}); the rates would differ on a quiet host"
    )


def shared_gpu(facts: Mapping[str, Any]) -> str:
    """Say how much others used the GPUs; `facts` is `search` of a best.json."""
    return f"just before a measurement, other processes used up to {facts['most_foreign_gpu_fraction']:.0%} of its GPU's time; the rates would differ on a free GPU"


def sharing_host(trials_per_host: int) -> str:
    """Say what trials that run at once on a host share, and what each has for itself (--share host)."""
    return f"{trials_per_host} trials at once per host, each on its own GPUs and CPUs: they shared disk and memory bandwidth"


def read_more(best: Mapping[str, Any], ranked: pd.DataFrame) -> str | None:
    """Say why the setting with the highest measured rate is not the answer; return None if no rate was higher than the answer's."""
    complete = ranked[ranked["status"] == "complete"]
    complete = complete[Disqualified.of(best["search"]).allowed(complete)]
    complete = complete[~(complete["gpu_headroom_fraction"] < LEAST_HEADROOM_FRACTION)]
    rate = best["throughput"]
    more = complete[complete["throughput_sps"] > rate["samples_per_second"] * (1 + TIED_FRACTION)]
    if more.empty:
        return None
    first = more.sort_values("throughput_sps", ascending=False).iloc[0]
    size = best["dataloader"].get("batch_size")
    other_size = "" if pd.isna(first["batch_size"]) or first["batch_size"] == size else " at another batch size"
    what = f"{first['config']} was measured faster{other_size}, at {first['throughput_sps']:,.0f}/s"
    low, best_low = first["throughput_low_sps"], rate["ci95"][0]
    if best["confirmed"] and first["num_rounds"] < MIN_ROUNDS:
        return f"{what}, but in one trial and in too few rounds to count: a single measurement may be lucky."
    is_yours = best["baseline"] and setting_text(best["baseline"]) == setting_text(best)
    if is_yours and not other_size:  # do not leave the baseline for a difference that may be noise
        return f"{what}, but not significantly faster than the baseline."
    if low < best_low:
        why = f"its interval begins at {low:,.0f}, that of the best setting at {best_low:,.0f}"
        return f"{what}, but is less certain: {why}. If a rate was still changing, or was not significantly above that of your own setting, the lower end of its interval is compared instead of the rate, so that no lucky measurement wins."
    if not other_size:  # the setting with the highest lower end ties with the answer, which is cheaper
        why = f"its interval begins at {low:,.0f}, and the answer reached {rate['samples_per_second']:,.0f}"
        return f"{what}, but the two may be equally fast: {why}. Of such settings, the answer is the cheapest: those that take much more CPU time than another are left out; then fewest workers, prefetch and memory decide."
    return f"{what}. The answer is the best at its own batch size only. To search at this one, use --batch-size {first['batch_size']}."


def duration(seconds: float) -> str:
    """Format a duration for people."""
    for unit, length, limit in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 72)):
        if seconds < limit * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:,.1f} days"


def _interval(row: pd.Series[Any], name: str) -> str:
    low, high = number(row[f"{name}_low_sps"]), number(row[f"{name}_high_sps"])
    return f"{number(row[f'{name}_sps'])} (95 % interval {low}-{high})"


def fact_rows(facts: object) -> list[tuple[str, str]]:
    """Return the facts of an object from a file as rows of a table; nothing if it is no object."""
    if not isinstance(facts, dict):
        return []
    return [
        (str(name).replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in facts.items()
        if value not in (None, [], {}, "")
    ]


def _text(holder: Mapping[str, Any], *path: str) -> str | None:
    value: Any = holder
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) and value else None
