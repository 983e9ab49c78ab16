"""The report page of a training: what became of its loader, and its timeline."""

from __future__ import annotations

import os

from feedrate.analysis import html_parts, training_sections
from feedrate.analysis.best import to_paste
from feedrate.analysis.html_parts import document, heading, left_out, paste, plot, table, write_html
from feedrate.analysis.training import Training
from feedrate.analysis.training_figure import training_figure


def write_training_page(training: Training, path: str | os.PathLike[str]) -> None:
    """Write the page; after a crash, the file is either the old page or the new one.

    Raises:
        RunError: the file cannot be written.
    """
    write_html(path, render_training_page(training))


def render_training_page(training: Training) -> str:
    """Return the text of the page."""
    note = None
    if not training.is_over:
        note = f"The training goes on, or was ended from outside. This page reloads itself every {html_parts.REFRESH_S} s; feedrate report writes it again."
    parts = ["<section>", heading("answer", "Answer"), table(training_sections.answer(training), row_headers=True)]
    if pasted := to_paste(training.best):
        parts += paste(*pasted)
    parts += ["</section>", *_timeline(training)]
    for name, title, section in (
        ("settings", "Numbers of workers", training_sections.settings_section(training)),
        ("decisions", "Decisions", training_sections.decisions_section(training)),
    ):
        parts += ["<section>", heading(name, title), table(section) if section.rows else "<p>There are none.</p>", "</section>"]
    facts = training_sections.machine(training)
    parts += ["<section>", heading("machine", "Machine and versions")]
    parts += [table(facts, row_headers=True) if facts.rows else "<p>Not recorded.</p>", "</section>", *left_out(training.problems)]
    return document(training_sections.title(training), training_sections.headline(training), parts, reload_note=note)


def _timeline(training: Training) -> list[str]:
    figure = training_figure(training)
    if figure is None:
        return []
    settings = training_sections.settings_section(training)
    alt = "Rate, waiting and number of workers over time. " + "; ".join(
        f"{row[0]} workers: {row[3]} batches/s, waiting {row[4]}" for row in settings.rows if row[3]
    )
    caption = "The rate is that of the whole training, with the batches that are unsteady after a change. Marks are decisions; the pointer shows their reasons."
    script = "<noscript><p>The plot needs JavaScript; the tables below have the same numbers.</p></noscript>"
    return [script, *plot("timeline", "Timeline of the training", figure, alt, caption, with_script=True)]
