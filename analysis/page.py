"""The report page of a search: one HTML file that works offline and shows the answer first."""

from __future__ import annotations

import html
import os
from dataclasses import replace

import pandas as pd

from feedrate.analysis import html_parts, sections
from feedrate.analysis.best import to_paste
from feedrate.analysis.figures import batch_size_figure, heat_figure, pareto_figure, throughput_figure, timeline_figure
from feedrate.analysis.html_parts import code, document, heading, left_out, paste, plot, table, write_html
from feedrate.analysis.outlook import outlook_of
from feedrate.analysis.outlook_figures import curve_figure, what_if_figure
from feedrate.analysis.question_sections import (
    effects_section,
    loading_section,
    noise_section,
    ranks_section,
    time_section,
    what_if_section,
)
from feedrate.analysis.questions import pareto
from feedrate.analysis.rank_table import rank_shares
from feedrate.analysis.ranks_figure import ranks_figure
from feedrate.analysis.run import Run
from feedrate.analysis.summary import best_by_batch_size, knee, ranking

_TRACEBACKS = 10


def write_page(run: Run, path: str | os.PathLike[str]) -> None:
    """Write the page; after a crash, the file is either the old page or the new one.

    Raises:
        RunError: the file cannot be written.
    """
    write_html(path, render_page(run))


def render_page(run: Run) -> str:
    """Return the text of the page."""
    ranked = ranking(run)
    by_batch_size = best_by_batch_size(run, ranked)
    note = None
    if run.unfinished:
        note = (
            f"The search is not finished. This page reloads itself every {html_parts.REFRESH_S} s; "
            "feedrate report writes it again. If the search was interrupted, feedrate resume continues it."
        )
    return document(
        sections.title(run),
        sections.headline(run, ranked),
        [*_answer(run, ranked), *_plots(run, ranked, by_batch_size), *_tables(run, ranked, by_batch_size)],
        reload_note=note,
    )


def _answer(run: Run, ranked: pd.DataFrame) -> list[str]:
    parts = ["<section>", heading("answer", "Answer"), table(sections.answer(run, ranked), row_headers=True)]
    if pasted := to_paste(run.best):
        parts += paste(*pasted)
    return [*parts, "</section>"]


def _plots(run: Run, ranked: pd.DataFrame, by_batch_size: pd.DataFrame) -> list[str]:
    throughput, timeline = throughput_figure(run, ranked), timeline_figure(run)
    sizes = batch_size_figure(run, by_batch_size)
    heat, front = heat_figure(run, ranked), pareto(run)
    memory = pareto_figure(run, ranked, front)
    parts: list[str] = []
    if throughput is None and timeline is None:
        return parts
    parts.append("<noscript><p>The plots need JavaScript; the tables below have the same numbers.</p></noscript>")
    if throughput is not None:
        first = ranked.iloc[0]
        alt = (
            f"Throughput against num_workers for {sections.plural(len(ranked), 'setting')}; the fastest is "
            f"{first['config']} with {sections.number(first['throughput_sps'])} {run.unit}/s."
        )
        caption = "Bars are 95 % intervals; the line joins the fastest settings; open diamonds were stopped early."
        parts += plot("throughput", "Throughput by number of workers", throughput, alt, caption, with_script=True)
    if heat is not None:
        filled = sum(value is not None for row in heat.data[0].z for value in row)
        alt = f"The best rate for each number of workers and prefetch factor, {sections.plural(filled, 'cell')} filled; the ranking has the numbers."
        caption = "At the fastest setting's batch size. Settings of empty cells were not tried, or stopped early."
        parts += plot("heat", "Workers and prefetching", heat, alt, caption, with_script=False)
    if sizes is not None:
        told = "; ".join(
            f"{row['batch_size']}: {sections.number(row['throughput_sps'])} {run.unit}/s" for row in by_batch_size.to_dict("records")
        )
        alt = f"The best rate at each batch size. {told}."
        enough, largest = knee(by_batch_size), int(by_batch_size["batch_size"].max())
        caption = (
            ("" if enough == largest else f"From batch size {enough} on, larger batches gain less than 5 %. ")
            + "The dotted line is the training step without loading. A batch size changes training, not only speed."
        )
        parts += plot("sizes", "Throughput by batch size", sizes, alt, caption, with_script=False)
    if timeline is not None:
        counts = run.latest["status"].value_counts()
        alt = "Trials in the order of time: " + ", ".join(f"{count} {status}" for status, count in counts.items()) + "."
        caption = "Filled points ran to their end, open diamonds were stopped early, crosses on the axis failed."
        parts += plot("timeline", "Timeline of trials", timeline, alt, caption, with_script=throughput is None)
    ranks = ranks_figure(run, ranked)
    if ranks is not None:
        shares = rank_shares(run)
        best = shares[shares["config"] == shares.iloc[0]["config"]]
        told = ", ".join(f"rank {row['rank']} {row['wait_fraction']:.0%}" for row in best.to_dict("records"))
        alt = f"The share of each window in which each rank waits for its loader. With the fastest setting, on average: {told}."
        caption = "The answer's last trial. One bright row is a rank that is always slow; bright cells in all rows are ranks that take turns."
        parts += plot("ranks", "Which rank waits", ranks, alt, caption, with_script=False)
    if memory is not None:
        alt = "Throughput against memory. On the front: " + "; ".join(
            f"{row['config']}, {sections.size(row['tree_pss_bytes'])}, {sections.number(row['throughput_sps'])} {run.unit}/s"
            for row in front.head(10).to_dict("records")
        )
        caption = "The line joins the settings for which no other is better in both: it shows the rate that more memory buys."
        parts += plot("memory", "Throughput against memory", memory, alt, caption, with_script=False)
    return parts


def _outlook(run: Run, ranked: pd.DataFrame) -> list[str]:
    """Return what the model of loading expects; nothing if it does not describe the run."""
    found = outlook_of(run)
    curve, bars = curve_figure(run, ranked, found), what_if_figure(run, found)
    if curve is None or bars is None or found.curve is None:
        return []
    best, enough = found.curve.best()
    alt = f"The rate that the model expects at each number of workers: at most {sections.number(best)} {run.unit}/s, reached with {sections.plural(enough, 'worker')}."
    caption = (
        "The line is the rate that a model of loading expects, mainly from times measured in workers, and the band its 95 % interval. Points are measured, all "
        "at the batch size of the answer. A point outside the band is fast or slow for a reason that the model does not know, such as prefetching or memory."
    )
    parts = plot("expected", "What the model of loading expects", curve, alt, caption, with_script=False)
    alt = "Predicted rates if one thing were different: " + "; ".join(f"{each.change}: {each.ratio:.2f}x" for each in found.what_ifs) + "."
    caption = "Predicted, not measured. The dotted line is the measured rate of the answer: a change whose bar ends there gains nothing. Thin lines are 95 % intervals."
    parts += plot("changes", "What would make it faster", bars, alt, caption, with_script=False)
    return [*parts, "<section>", heading("what-if", "The same as a table"), table(what_if_section(run, found)), "</section>"]


def _tables(run: Run, ranked: pd.DataFrame, by_batch_size: pd.DataFrame) -> list[str]:
    parts = ["<section>", heading("ranking", "Ranking")]
    parts.append(table(sections.ranking_section(run, ranked)) if len(ranked) else "<p>No setting has a rate.</p>")
    if len(by_batch_size) > 1:
        parts.append(heading("batch-sizes", "Best at each batch size"))
        caption = "The fastest setting at each batch size; speed-up against the baseline at that size"
        parts.append(table(replace(sections.ranking_section(run, by_batch_size), caption=caption)))
    for name, title, section in (
        ("effects", "How much each dimension matters", effects_section(run)),
        ("time", "Where the time goes", time_section(run)),
        ("loading", "What loading costs", loading_section(run)),
        ("rank-shares", "How long each rank waits", ranks_section(run)),
        ("noise", "How noisy the machine was", noise_section(run)),
    ):
        if section.rows:
            parts += ["</section>", "<section>", heading(name, title), table(section)]
    parts += ["</section>", *_outlook(run, ranked), "<section>", heading("failures", "Failures")]
    failures = sections.failures_section(run)
    parts.append(table(failures) if failures.rows else "<p>No trial failed.</p>")
    for column, what in (("failure_traceback", "Traceback"), ("failure_stacks", "Where the processes were")):
        for text, count in run.failures[column].dropna().value_counts().head(_TRACEBACKS).items():
            summary = f"{what}, {sections.plural(count, 'trial')}"
            parts.append(f"<details><summary>{summary}</summary><pre>{html.escape(str(text))}</pre></details>")
    facts = sections.machine(run)
    parts += ["</section>", "<section>", heading("machine", "Machine and versions")]
    parts.append(table(facts, row_headers=True) if facts.rows else "<p>Not recorded.</p>")
    command = sections.repeat_command(run)
    parts += ["</section>", "<section>", heading("repeat", "How to repeat it")]
    parts.append(code(command) if command else "<p>The command was not recorded.</p>")
    return [*parts, "</section>", *left_out(run.problems)]
