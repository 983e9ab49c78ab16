"""The parts of a report page: headings, tables, code and plots as HTML, and the document around them.

The frame with its styles is page.html; every text that comes from users is escaped here. Plotly's script (4.8 MB) is
written into a page once, before the first plot; a page without plots does not contain it.
"""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template

import plotly.graph_objects as go
import plotly.io

from feedrate.analysis.run_folder import RunError, write_atomic
from feedrate.analysis.sections import Section, plural

REFRESH_S = 10
_FOLDED_ROWS = 40
"""Number of rows that a table shows; further rows are folded away below it."""


def write_html(path: str | os.PathLike[str], page: str) -> None:
    """Write a page; after a crash, the file is either the old page or the new one.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        write_atomic(Path(path), page)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}. Name another file") from None


def document(title: str, headline: str, body: Sequence[str], *, reload_note: str | None) -> str:
    """Return a whole page.

    Args:
        title: what identifies the run.
        headline: the answer in one sentence.
        body: the sections as HTML.
        reload_note: a sentence about a run that is not finished, whose page reloads itself; None if it is finished.
    """
    template = Template(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(f"feedrate: {title}"),
        headline=html.escape(headline),
        refresh="" if reload_note is None else f'<meta http-equiv="refresh" content="{REFRESH_S}">',
        note="" if reload_note is None else f'<p class="note" role="status">{html.escape(reload_note)}</p>',
        body="\n".join(body),
        written=datetime.now(UTC).strftime("on %Y-%m-%d at %H:%M:%S UTC"),
    )


def heading(name: str, text: str) -> str:
    """Return a heading that `#name` addresses."""
    return f'<h2 id="{name}">{html.escape(text)}</h2>'


def code(text: str) -> str:
    """Return a block of code."""
    return f"<pre><code>{html.escape(text)}</code></pre>"


def paste(words: str, snippet: str) -> list[str]:
    """Return code to paste, under words that say where."""
    return [f"<p>{html.escape(words)}</p>", code(snippet)]


def table(section: Section, *, row_headers: bool = False) -> str:
    """Return the table in HTML, with all rows after the first few folded away."""
    shown, folded = section.rows[:_FOLDED_ROWS], section.rows[_FOLDED_ROWS:]
    text = _rows(section, shown, section.caption, row_headers)
    if folded:
        caption = f"{section.caption}, from row {_FOLDED_ROWS + 1}"
        summary = f"{plural(len(folded), 'more row')}"
        text += f"<details><summary>{summary}</summary>{_rows(section, folded, caption, row_headers)}</details>"
    return text


def _rows(section: Section, rows: Sequence[tuple[str, ...]], caption: str, row_headers: bool) -> str:
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


def left_out(problems: Sequence[str]) -> list[str]:
    """Return the section about what could not be read; nothing if all could."""
    if not problems:
        return []
    items = "".join(f"<li>{html.escape(problem)}</li>" for problem in problems)
    return ["<section>", heading("left-out", "Left out"), f"<ul>{items}</ul>", "</section>"]


def plot(name: str, title: str, figure: go.Figure, alt: str, caption: str, *, with_script: bool) -> list[str]:
    """Return the section of a plot; `alt` says to those who do not see it what it shows."""
    drawn = plotly.io.to_html(
        figure,
        include_plotlyjs=with_script,
        full_html=False,
        div_id=f"plot-{name}",
        config={"displayModeBar": False, "responsive": True},
    )
    return [
        "<section>",
        heading(name, title),
        f'<figure><div class="plot" role="img" aria-label="{html.escape(alt)}">{drawn}</div>',
        f"<figcaption>{html.escape(caption)}</figcaption></figure>",
        "</section>",
    ]
