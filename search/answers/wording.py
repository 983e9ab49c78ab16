"""The printed answer of a search: a short table, the reasons for the answer, and code to paste."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from feedrate.analysis.best import python_snippet
from feedrate.analysis.disqualified import Disqualified
from feedrate.analysis.doubts import QUIET, more_trials_command, settle_command
from feedrate.analysis.estimate import LEAST_HEADROOM_FRACTION
from feedrate.analysis.load import load_run
from feedrate.analysis.outlook import helps
from feedrate.analysis.paste import paste_heading
from feedrate.analysis.rounds import DISTURBED_FRACTION, TIED_FRACTION
from feedrate.analysis.run_folder import RunFolder
from feedrate.analysis.sections import epoch_text, read_more, shared_gpu, shared_host, sharing_host
from feedrate.analysis.summary import cost_of, knee_of, same
from feedrate.search.record import SearchRecord
from feedrate.search.result import SearchResult
from feedrate.search.session.search_end import reason_of
from feedrate.search.setup.prepare import resume_command
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import WITHOUT_WORKERS_TOO

GROWN_BYTES = 1e9
"""Growth of memory is printed only if the memory at the end of an epoch is at least this large."""


def print_result(result: SearchResult, console: Console, unit: str = "samples") -> None:
    """Print the answer of a search: a short table, the reasons for the answer, and code to paste."""
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
    rivals = ranked[(ranked["status"] == "complete") & same(ranked["batch_size"], size)]
    chosen = _row_of(rivals, best["process"] | best["dataloader"])
    tied = [_row_of(rivals, entry.get("process", {}) | entry) for entry in best["tied_with"]]
    rows = [("yours", row) for _, row in rivals[rivals["is_baseline"]].iterrows() if row["config"] != chosen["config"]]
    rows += [("best" if not chosen["is_baseline"] else "best (yours)", chosen)]
    most_sps = chosen["throughput_sps"] * (1 + TIED_FRACTION)
    rows += [("tied" if row["throughput_sps"] <= most_sps else "not sure", row) for row in tied[:3]]
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
    """Return the sentences under the table."""
    best = result.best
    assert best is not None
    lines = []
    why = "; ".join(best.get("verdict_evidence", ()))
    lines.append(f"Why: {best['verdict']}" + (f": {why}" if why else ""))
    left_out = Disqualified.of(best["search"])
    lines += [f"Left out: {which}, because {why}; see feedrate check." for which, why in left_out.in_words()]
    mine = result.ranking[result.ranking["is_baseline"]]
    if not left_out.true_rates(mine).all():
        lines.append("Your own setting is one of them: its rate counts repeated data, so it cannot be the answer.")
    elif not left_out.allowed(mine).all():
        lines.append("Your own setting is one of them: it is measured for comparison, but cannot be the answer.")
    yours = best["baseline"]
    full = result.ranking[result.ranking["gpu_headroom_fraction"] < LEAST_HEADROOM_FRACTION]
    if not full.empty:
        some = ", ".join(full["config"].head(3)) + (" and more" if len(full) > 3 else "")
        lines.append(f"Left out: {some}, because less than {LEAST_HEADROOM_FRACTION:.0%} of the accelerator's memory stayed free.")
    lines += _conclusion(result)
    if (epoch := epoch_text(best, best["throughput"]["unit"])) is not None and yours is not None:
        lines.append(f"Epoch of {epoch}.")
    lines += filter(None, [helps(best["what_if"]), read_more(best, result.ranking)])
    by_size = best["best_by_batch_size"]
    if len(by_size) > 1:
        rates = " · ".join(f"b{size} {entry['samples_per_second']:,.0f}/s" for size, entry in by_size.items())
        enough = knee_of({int(size): entry["samples_per_second"] for size, entry in by_size.items()})
        rates += f"; no larger one is more than 5 % faster than b{enough}" if enough < max(map(int, by_size)) else ""
        lines.append(f"Best by batch size: {rates} (the batch size changes training: fix it with --batch-size N; your own setting is compared at the best one's)")
    lines += _failed(result)
    for host in best["search"]["set_aside"]:
        lines.append(f"Set aside: {host['hostname']}, because {host['reason']}")
    memory = best["memory"]["end_of_epoch_bytes"]
    if memory is not None and memory >= 1.2 * (best["memory"]["pss_bytes"] or 0) and memory >= GROWN_BYTES:
        grown = "every worker that reads a dataset of Python objects copies it"
        lines.append(f"Memory grows: {memory / 1e9:.1f} GB at the end of an epoch if it keeps growing as in the trial ({grown}).")
    facts = best["search"]
    if facts["num_disturbed"]:
        lines.append(f"Shared host: {shared_host(facts)}.")
    if (facts["most_foreign_gpu_fraction"] or 0.0) >= DISTURBED_FRACTION:
        lines.append(f"Shared GPU: {shared_gpu(facts)}.")
    if (at_once := best["scope"]["trials_per_host"]) > 1:
        lines.append(f"Measured with up to {sharing_host(at_once)}.")
    step = [name for name, on in (("bfloat16 autocast", best["search"]["amp"]), ("torch.compile", best["search"]["compile"])) if on]
    if step:
        lines.append(f"The training step ran with {' and '.join(step)}; without that, the ceiling and these rates would be different.")
    if result.stop_reason:
        lines.append(f"Ended because {result.stop_reason}.")
    lines.append(_confirmed(best))
    if best["process"]:
        names = ", ".join(best["process"])
        lines.append(f"`dataloader` alone does not reproduce this rate: the process also needs {names}, as shown below.")
    lines.append(_paste(best))
    return lines


def _failed(result: SearchResult) -> list[str]:
    """Return the sentences about settings that failed, one for each reason."""
    assert result.best is not None
    lines = []
    failures = result.failures[~result.failures["superseded"]]
    several = failures["hostname"].nunique() > 1 or result.best["search"]["num_hosts"] > 1
    for _, alike in list(failures.groupby([reasons_of(failures), _without_workers(failures)], sort=False))[:3]:
        failure, num_more = alike.iloc[0], alike["config"].nunique() - 1
        where = f" on {failure['hostname']}" if several and alike["hostname"].nunique(dropna=False) == 1 and pd.notna(failure["hostname"]) else ""
        more = f" and {num_more} more setting{'s' * (num_more > 1)}" if num_more else ""
        lines.append(f"Failed: {failure['config']}{more}{where}: {failure['failure_message']}")
    if _without_workers(failures).any():
        lines.append("What fails with 0 workers too does not depend on the number of workers: mend it, then search again.")
    return lines


def _without_workers(failures: pd.DataFrame) -> pd.Series[bool]:
    """Return which failures in workers were found to happen without them, too."""
    return failures["failure_message"].fillna("").str.contains(WITHOUT_WORKERS_TOO, regex=False)


def reasons_of(failures: pd.DataFrame) -> pd.Series[Any]:
    """Return the reason of each failure without samples and numbers, so that failures for one reason have the same text."""
    both = zip(failures["failure_message"], failures["failure_kind"], strict=True)
    texts = [str(reason_of({"failure_message": message, "failure_kind": kind})).partition(" (raised ")[0] for message, kind in both]
    return pd.Series(texts, index=failures.index, dtype=object)


def _paste(best: dict[str, Any]) -> str:
    """Return what to paste, and where."""
    snippet = python_snippet(best)
    return paste_heading(best) + ("\n" if "\n" in snippet else " ") + snippet


def _conclusion(result: SearchResult) -> list[str]:
    """Return whether to keep the user's own setting, in words no firmer than the numbers, and the command that settles what is open."""
    best, ranked = result.best, result.ranking
    assert best is not None
    yours, settle = best["baseline"], best["search"]["settle"]
    is_yours = yours and yours["dataloader"] == best["dataloader"] and yours.get("process", {}) == best["process"]
    resume = resume_command(RunFolder(result.folder))
    lines = []
    if ranked["is_baseline"].all():
        lines.append(_only_yours(result, resume))
    elif best["verdict"] == "compute-bound" and best["ceiling"] and yours and yours["speedup"] < 1.05:
        sizes = best["best_by_batch_size"].values()
        is_slower = any(each["samples_per_second"] > best["throughput"]["samples_per_second"] * (1 + TIED_FRACTION) for each in sizes)
        where = f" at batch size {best['dataloader'].get('batch_size')}" if is_slower else ""
        if settle is None:
            lines.append(f"The training step is the limit here: no loader setting makes a real difference{where}.")
        else:
            lines.append(f"The training step seems to be the limit here{where}, but this is not certain.")
    elif is_yours:
        rivals = ranked[(ranked["status"] == "complete") & same(ranked["batch_size"], best["dataloader"].get("batch_size"))]
        some = (rivals["throughput_sps"] > best["throughput"]["samples_per_second"] * (1 + TIED_FRACTION)).any()
        if settle is None and some:
            lines.append("Some settings were measured faster than yours, but not significantly: keep yours.")
        elif settle is None:
            lines.append("Nothing faster than yours was found: keep it.")
        else:
            lines.append("No setting was shown to be faster than yours, but this is not certain: keep yours until it is settled.")
    elif yours and yours["speedup_ci95"][0] <= 1 and Disqualified.of(best["search"]).allowed(ranked[ranked["is_baseline"]]).all():
        lines.append(f"No significant gain over yours{_saving(result)}.")
    if best["search"]["open"] and not ranked["is_baseline"].all():
        lines.append(f"Open: {'; '.join(best['search']['open'])}.")
        where = " (when the machine is quiet)" if settle == QUIET else ""
        lines.append(f"To settle it{where}: {settling(result)}")
    return lines


def _only_yours(result: SearchResult, resume: str) -> str:
    """Return a sentence for an answer that is your own setting because nothing else was measured, and how to measure others."""
    assert result.best is not None
    run = load_run(result.folder)
    tried = set(run.trials["config"])
    if any(config.short() not in tried for config in SearchRecord.of(run).space.configs()):
        others = result.failures[~result.failures["config"].isin(result.ranking["config"])]
        if _without_workers(others).any():
            return "Only your own setting was measured: the others that were tried failed."
        more = more_trials_command(run.search, result.best["search"]["num_trials"], resume)
        if not others.empty:
            return f"Only your own setting was measured, the others that were tried failed. Try more with: {more}"
        return f"Only your own setting was measured: nothing is known about others. Try some with: {more}"
    if not result.failures.empty:
        return "Only your own setting was measured: every other setting of the search space failed."
    if not Disqualified.of(run.search).is_nothing:
        return "Only your own setting was measured: the search space has no other one that does not repeat data."
    return (
        "Only your own setting was measured: the search space has no other one. To compare it with others, search more values, for "
        "example --num-workers 0..16."
    )


def settling(result: SearchResult) -> str | None:
    """Return the whole command that settles what is open about an answer; None if nothing is open."""
    settle = result.best["search"]["settle"] if result.best is not None else None
    if settle is None:
        return None
    run = load_run(result.folder)
    return settle_command(settle, run.search, run.latest, resume_command(RunFolder(result.folder)))


def _confirmed(best: dict[str, Any]) -> str:
    """Return a sentence that says whether rounds confirmed the answer, and which settings could not be told apart from it."""
    if not best["confirmed"]:
        because = best["search"].get("unconfirmed_because")
        why = f", because {because}" if because else ""
        return f"Not confirmed{why}. With one measurement per setting, luck makes the best one look a little faster than it is."
    facts = best["search"]
    text = f"Confirmed in {facts['num_rounds']} interleaved rounds"
    if facts["num_round_hosts"] > 1:
        text += f" on {facts['num_round_hosts']} hosts"
    elif facts["num_hosts"] > 1:
        text += f", all on one of the {facts['num_hosts']} hosts, {best['measured_on']['hostname']}, which may not be typical"
    if best["search"]["undecided"]:
        text += f"; in that time, {' and '.join(best['search']['undecided'])} could not be distinguished from the best one"
    return text + "."


def _saving(result: SearchResult) -> str:
    """Return in which way the answer is cheaper than the baseline, to continue a sentence; empty if it is in none."""
    assert result.best is not None and result.best["baseline"] is not None
    settings = [each.get("process", {}) | each["dataloader"] for each in (result.best, result.best["baseline"])]
    answer, yours = (cost_of(_row_of(result.ranking, each)) for each in settings)
    if answer.cpu_item_s and yours.cpu_item_s and yours.takes_much_more_cpu(answer):
        return f", but it takes {100 * (1 - answer.cpu_item_s / yours.cpu_item_s):.0f} % less CPU time"
    return ", but it needs fewer workers" if answer.num_workers < yours.num_workers else ""


def _row_of(rows: pd.DataFrame, setting: dict[str, Any]) -> pd.Series[Any]:
    name = LoaderConfig.from_dict({"batch_size": None, **setting}).short()
    row: pd.Series[Any] = rows[rows["config"] == name].iloc[0]
    return row
