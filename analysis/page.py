"""The report page: one HTML file that works offline and shows the answer first.

The frame with its styles is page.html; every text that comes from users is escaped here. Plotly's script (4.8 MB) is
written into the page once, before the first plot; a page without plots does not contain it.
"""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template

import pandas as pd
import plotly.graph_objects as go
import plotly.io

from feedrate.analysis import sections
from feedrate.analysis.figures import batch_size_figure, heat_figure, pareto_figure, throughput_figure, timeline_figure
from feedrate.analysis.question_sections import effects_section, noise_section, time_section
from feedrate.analysis.questions import pareto
from feedrate.analysis.run import Run
from feedrate.analysis.run_folder import RunError, write_atomic
from feedrate.analysis.summary import best_by_batch_size, knee, ranking

REFRESH_S = 10
_FOLDED_ROWS = 40
"""Number of rows that a table shows; further rows are folded away below it."""
_TRACEBACKS = 10


def write_page(run: Run, path: str | os.PathLike[str]) -> None:
    """Write the page; after a crash, the file is either the old page or the new one.

    Raises:
        RunError: the file cannot be written.
    """
    page = render_page(run)
    try:
        write_atomic(Path(path), page)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}. Name another file") from None


def render_page(run: Run) -> str:
    """Return the text of the page."""
    ranked = ranking(run)
    by_batch_size = best_by_batch_size(run, ranked)
    refresh = note = ""
    if run.unfinished:
        refresh = f'<meta http-equiv="refresh" content="{REFRESH_S}">'
        note = (
            f'<p class="note" role="status">The search is not finished. This page reloads itself every {REFRESH_S} s; '
            "feedrate report writes it again. If the search was interrupted, feedrate resume continues it.</p>"
        )
    template = Template(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(f"feedrate: {sections.title(run)}"),
        headline=html.escape(sections.headline(run, ranked)),
        refresh=refresh,
        note=note,
        body="\n".join([*_answer(run, ranked), *_plots(run, ranked, by_batch_size), *_tables(run, ranked, by_batch_size)]),
        written=datetime.now(UTC).strftime("on %Y-%m-%d at %H:%M:%S UTC"),
    )


def _answer(run: Run, ranked: pd.DataFrame) -> list[str]:
    parts = ["<section>", _heading("answer", "Answer"), _table(sections.answer(run, ranked), row_headers=True)]
    snippet = sections.paste(run)
    if snippet:
        parts += ["<p>Paste:</p>", _code(snippet)]
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
        parts += _plot("throughput", "Throughput by number of workers", throughput, alt, caption, with_script=True)
    if heat is not None:
        filled = sum(value is not None for row in heat.data[0].z for value in row)
        alt = f"The best rate for each number of workers and prefetch factor, {sections.plural(filled, 'cell')} filled; the ranking has the numbers."
        caption = "At the fastest setting's batch size. Settings of empty cells were not tried, or stopped early."
        parts += _plot("heat", "Workers and prefetching", heat, alt, caption, with_script=False)
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
        parts += _plot("sizes", "Throughput by batch size", sizes, alt, caption, with_script=False)
    if timeline is not None:
        counts = run.latest["status"].value_counts()
        alt = "Trials in the order of time: " + ", ".join(f"{count} {status}" for status, count in counts.items()) + "."
        caption = "Filled points ran to their end, open diamonds were stopped early, crosses on the axis failed."
        parts += _plot("timeline", "Timeline of trials", timeline, alt, caption, with_script=throughput is None)
    if memory is not None:
        alt = "Throughput against memory. On the front: " + "; ".join(
            f"{row['config']}, {sections.size(row['tree_pss_bytes'])}, {sections.number(row['throughput_sps'])} {run.unit}/s"
            for row in front.head(10).to_dict("records")
        )
        caption = "The line joins the settings for which no other is better in both: it shows the rate that more memory buys."
        parts += _plot("memory", "Throughput against memory", memory, alt, caption, with_script=False)
    return parts


def _plot(name: str, heading: str, figure: go.Figure, alt: str, caption: str, *, with_script: bool) -> list[str]:
    plot = plotly.io.to_html(
        figure,
        include_plotlyjs=with_script,
        full_html=False,
        div_id=f"plot-{name}",
        config={"displayModeBar": False, "responsive": True},
    )
    return [
        "<section>",
        _heading(name, heading),
        f'<figure><div class="plot" role="img" aria-label="{html.escape(alt)}">{plot}</div>',
        f"<figcaption>{html.escape(caption)}</figcaption></figure>",
        "</section>",
    ]


def _tables(run: Run, ranked: pd.DataFrame, by_batch_size: pd.DataFrame) -> list[str]:
    parts = ["<section>", _heading("ranking", "Ranking")]
    parts.append(_table(sections.ranking_section(run, ranked)) if len(ranked) else "<p>No setting has a rate.</p>")
    if len(by_batch_size) > 1:
        parts.append(_heading("batch-sizes", "Best at each batch size"))
        caption = "The fastest setting at each batch size; speed-up against the baseline at that size"
        parts.append(_table(replace(sections.ranking_section(run, by_batch_size), caption=caption)))
    for name, heading, section in (
        ("effects", "How much each dimension matters", effects_section(run)),
        ("time", "Where the time goes", time_section(run)),
        ("noise", "How noisy the machine was", noise_section(run)),
    ):
        if section.rows:
            parts += ["</section>", "<section>", _heading(name, heading), _table(section)]
    failures = sections.failures_section(run)
    parts += ["</section>", "<section>", _heading("failures", "Failures")]
    parts.append(_table(failures) if failures.rows else "<p>No trial failed.</p>")
    for column, what in (("failure_traceback", "Traceback"), ("failure_stacks", "Where the processes were")):
        for text, count in run.failures[column].dropna().value_counts().head(_TRACEBACKS).items():
            summary = f"{what}, {sections.plural(count, 'trial')}"
            parts.append(f"<details><summary>{summary}</summary><pre>{html.escape(str(text))}</pre></details>")
    facts = sections.machine(run)
    parts += ["</section>", "<section>", _heading("machine", "Machine and versions")]
    parts.append(_table(facts, row_headers=True) if facts.rows else "<p>Not recorded.</p>")
    command = sections.repeat_command(run)
    parts += ["</section>", "<section>", _heading("repeat", "How to repeat it")]
    parts.append(_code(command) if command else "<p>The command was not recorded.</p>")
    parts.append("</section>")
    if run.problems:
        items = "".join(f"<li>{html.escape(problem)}</li>" for problem in run.problems)
        parts += ["<section>", _heading("left-out", "Left out"), f"<ul>{items}</ul>", "</section>"]
    return parts


def _heading(name: str, text: str) -> str:
    return f'<h2 id="{name}">{html.escape(text)}</h2>'


def _code(text: str) -> str:
    return f"<pre><code>{html.escape(text)}</code></pre>"


def _table(section: sections.Section, *, row_headers: bool = False) -> str:
    """Return the table in HTML, with all rows after the first few folded away."""
    shown, folded = section.rows[:_FOLDED_ROWS], section.rows[_FOLDED_ROWS:]
    text = _rows(section, shown, section.caption, row_headers)
    if folded:
        caption = f"{section.caption}, from row {_FOLDED_ROWS + 1}"
        summary = f"{sections.plural(len(folded), 'more row')}"
        text += f"<details><summary>{summary}</summary>{_rows(section, folded, caption, row_headers)}</details>"
    return text


def _rows(section: sections.Section, rows: Sequence[tuple[str, ...]], caption: str, row_headers: bool) -> str:
    classes = [' class="number"' if header in section.numeric else "" for header in section.headers]
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(header)}</th>' if header else "<td></td>"
        for header, kind in zip(section.headers, classes, strict=True)
    )
    body = []
    for row in rows:
        cells = [f"<td{kind}>{html.escape(cell)}</td>" for cell, kind in zip(row, classes, strict=True)]
        if row_headers:
            cells[0] = f'<th scope="row">{html.escape(row[0])}</th>'
        body.append(f"<tr>{''.join(cells)}</tr>")
    # a table of facts comes after a heading that says the same as its caption
    unseen = ' class="unseen"' if row_headers else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<caption{unseen}>{html.escape(caption)}</caption><thead{unseen}><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
