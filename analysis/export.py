"""Write a run to files for other tools: the trials as CSV and Parquet, the report as Markdown."""

from __future__ import annotations

import html
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet

from feedrate.analysis import sections
from feedrate.analysis.best import to_paste
from feedrate.analysis.run import Run
from feedrate.analysis.run_folder import RunError, write_atomic
from feedrate.analysis.summary import ranking

FORMATS = {"csv": "trials.csv", "parquet": "trials.parquet", "markdown": "report.md"}


def export_tables(run: Run, folder: str | os.PathLike[str], formats: Sequence[str]) -> list[Path]:
    """Write one file per format into `folder`, which is created if missing. A crash leaves only complete files.

    Args:
        run: the result of `load_run`.
        folder: where the files go; files of these names are replaced.
        formats: any of csv, parquet, markdown.

    Raises:
        RunError: a format is unknown, or the folder cannot be written.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise RunError(f"unknown format {unknown[0]!r}; the formats are {', '.join(FORMATS)}")
    written = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(formats):
            path = Path(folder) / FORMATS[name]
            write_atomic(path, _content(run, name))
            written.append(path)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}. Name another folder") from None
    return written


def markdown(run: Run) -> str:
    """Return the report as Markdown: the answer, the ranking, the failures, the machine, and how to repeat the search."""
    ranked = ranking(run)
    parts = [f"# feedrate: {_escape(sections.title(run))}", f"**{_escape(sections.headline(run, ranked))}.**"]
    if run.unfinished:
        parts.append("The search is not finished; this is what was measured so far.")
    parts.append(_table(sections.answer(run, ranked)))
    if pasted := to_paste(run.best):
        parts += [_escape(pasted[0]), _fenced(pasted[1], "python")]
    parts += ["## Ranking", _table(sections.ranking_section(run, ranked)) if len(ranked) else "No setting has a rate."]
    failures = sections.failures_section(run)
    parts += ["## Failures", _table(failures) if failures.rows else "No trial failed."]
    facts = sections.machine(run)
    parts += ["## Machine and versions", _table(facts) if facts.rows else "Not recorded."]
    command = sections.repeat_command(run)
    parts += ["## How to repeat it", _fenced(command, "sh") if command else "The command was not recorded."]
    if run.problems:
        parts += ["## Left out", "\n".join(f"- {_escape(problem)}" for problem in run.problems)]
    return "\n\n".join(parts) + "\n"


def _content(run: Run, name: str) -> str | bytes:
    if name == "csv":
        return str(run.trials.to_csv(index=False, lineterminator="\n"))
    if name == "parquet":
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pandas(run.trials, preserve_index=False), buffer)
        return buffer.getvalue()
    return markdown(run)


def _table(section: sections.Section) -> str:
    headers = [_escape(header) for header in section.headers]
    rule = ["---:" if header in section.numeric else "---" for header in section.headers]
    rows = [[_escape(cell) for cell in row] for row in section.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [headers, rule, *rows])


def _escape(text: str) -> str:
    """Return the text on one line and escaped, so that it is no Markdown or HTML and does not end a table cell."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _fenced(code: str, language: str) -> str:
    """Return a code block whose fence is longer than any run of backticks in the code, so that the code cannot end it."""
    longest = max(map(len, re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"
