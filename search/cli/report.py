"""`feedrate report`, `show` and `export`: show the results in a run folder. `compare` and `runs` are in runs.py."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.search.options import NothingFound, UsageError
from feedrate.search.terminal import arguments
from feedrate.search.terminal.machine_output import answer, records

if TYPE_CHECKING:
    from rich.console import Console

    from feedrate.analysis.run_folder import RunFolder
    from feedrate.analysis.sections import Section

FORMATS = ("html", "csv", "parquet", "markdown")
QUESTIONS = ("ranking", "batch-size", "effects", "pareto", "time", "loading", "ranks", "what-if", "failures", "noise")
WHAT_IF = "what-if"
RUN = "the run folder, or an address that pyarrow or fsspec can open (s3://bucket/run)"


def terminal() -> Console:
    """Return a console for tables; in a file or a pipe, tables keep their full width."""
    from rich.console import Console

    return Console(soft_wrap=True) if sys.stdout.isatty() else Console(soft_wrap=True, width=1000)


def print_section(console: Console, section: Section, heading: str, most_rows: int) -> None:
    """Print a table that is no wider than its text, with `heading` above it and at most `most_rows` rows."""
    from rich.table import Table
    from rich.text import Text

    console.print(f"\n{heading[0].upper()}{heading[1:]}", style="bold", markup=False, highlight=False)
    if not section.rows:
        console.print(section.why_empty, markup=False, highlight=False)
        return
    if section.caption.lower() != heading.lower():
        console.print(section.caption, style="dim", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in section.headers:
        table.add_column(Text(header), justify="right" if header in section.numeric else "left", overflow="fold")
    for row in section.rows[:most_rows]:
        table.add_row(*map(Text, row))
    console.print(table)
    if len(section.rows) > most_rows:
        left = len(section.rows) - most_rows
        console.print(f"... and {left} more (--rows {len(section.rows)})", markup=False, highlight=False)


class Report:
    """Write the report page and tables of a run, even while it is still running. Of a training (feedrate train, LiveCallback): the page, and best.json if there is none yet.

    feedrate report feedrate-runs/images-1
    feedrate report feedrate-runs/images-1 --format csv,parquet,markdown
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", help=RUN)
        parser.add_argument(
            "--format", default="html", metavar="LIST", help=f"any of {','.join(FORMATS)} (default html)"
        )
        parser.add_argument("-o", "--output", metavar="DIR", help="where to write (default: the run folder)")
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        from feedrate.analysis.export import export_tables
        from feedrate.analysis.load import load_run
        from feedrate.analysis.page import write_page
        from feedrate.analysis.remote import is_url
        from feedrate.analysis.run_folder import RunFolder

        formats = [word.strip() for word in args.format.split(",") if word.strip()]
        unknown = [word for word in formats if word not in FORMATS]
        if unknown or not formats:
            raise UsageError(f"--format takes any of {', '.join(FORMATS)}, not {args.format!r}")
        if not is_url(args.run) and RunFolder(args.run).is_training():
            _report_training(args, formats)
            return None
        run = load_run(args.run)
        folder = _folder_for(args, run.path)
        try:
            written = export_tables(run, folder, [word for word in formats if word != "html"])
            if "html" in formats:
                write_page(run, folder / "report.html")
                written.append(folder / "report.html")
        except OSError as error:
            raise UsageError(f"the report cannot be written to {folder}: {error.strerror}") from None
        _say(written, run.problems)
        return None


def _report_training(args: argparse.Namespace, formats: Sequence[str]) -> None:
    """Write the page of a training, whose numbers are lines of JSON already."""
    from feedrate.analysis.training import load_training
    from feedrate.analysis.training_page import write_training_page

    if others := [word for word in formats if word != "html"]:
        raise UsageError(f"{args.run} is a training: its report is html only, not {others[0]}; its numbers are lines of live.jsonl")
    training = load_training(args.run)
    folder = _folder_for(args, training.path)
    written = [folder / "report.html"]
    if training.best is None and training.report and training.is_over and (best := _write_best_of(training.report, folder / "best.json")) is not None:
        written.append(folder / "best.json")
        training = dataclasses.replace(training, best=best)
    write_training_page(training, folder / "report.html")
    _say(written, training.problems)


def _write_best_of(content: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """Write best.json for a training that nobody started with `feedrate train`, and return its content; None if there is nothing to write.

    Args:
        content: that of train.json.
        path: the file to write, which is left alone if it exists.
    """
    from feedrate.analysis.best import write_best
    from feedrate.search.answers.training_answer import best_of, name_of
    from feedrate.trainables.tuning.training_report import TrainingReport

    report = TrainingReport.from_json(content)
    best = best_of(report, report.command, name_of(report.command)) if report.command else None
    if best is None or path.exists():
        return None
    try:
        write_best(path, best)
    except OSError as error:
        raise UsageError(f"best.json cannot be written to {path.parent}: {error.strerror}") from None
    return best


def _folder_for(args: argparse.Namespace, own: Path) -> Path:
    """Return the folder to write to, which exists then."""
    from feedrate.analysis.remote import is_url

    if args.output is None and is_url(args.run):
        raise UsageError(f"{args.run} is an address: give the folder to write to with -o DIR")
    if args.output is not None and is_url(args.output):
        raise UsageError(f"-o takes a folder, not the address {args.output}")
    folder = Path(args.output) if args.output else own
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the report cannot be written to {folder}: {error.strerror}") from None
    return folder


def _say(written: Sequence[Path], problems: Sequence[str]) -> None:
    answer("report", {"written": written, "problems": problems})
    for problem in problems:
        print(f"note: {problem}")
    for path in written:
        print(path)


class Show:
    """Print tables of a run: what is best, what matters, where the time goes. Works while the run is still going on, too.

    feedrate show feedrate-runs/images-1
    feedrate show feedrate-runs/images-1 --table time,noise
    feedrate show feedrate-runs/images-1 --table what-if --ceiling 4000
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", help=RUN)
        parser.add_argument(
            "--table", default="all", metavar="LIST",
            help=f"any of {', '.join(QUESTIONS)} (default all); see docs/analyse.md",
        )  # fmt: skip
        parser.add_argument("--rows", type=int, default=20, metavar="N", help="maximum number of rows per table (default 20); --json has all of them")
        parser.add_argument(
            "--ceiling", type=float, metavar="RATE",
            help="in the table what-if, also predict the rate with an accelerator that trains RATE items per second while no data is loaded",
        )  # fmt: skip
        parser.add_argument(
            "--ranks", type=int, metavar="N",
            help="in the table what-if, also predict the rate of N ranks together that share this host's CPUs, each with its own accelerator",
        )  # fmt: skip
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        names = list(QUESTIONS) if args.table == "all" else [word.strip() for word in args.table.split(",") if word.strip()]
        unknown = [name for name in names if name not in QUESTIONS]
        if unknown or not names:
            raise UsageError(f"--table takes any of {', '.join(QUESTIONS)}, not {', '.join(unknown) or 'nothing'!r}")
        if args.rows < 1:
            raise UsageError(f"--rows must be 1 or more, not {args.rows}")
        asked = _asked(args, names)
        from feedrate.analysis.load import load_run
        from feedrate.analysis.outlook import outlook_of, what_if
        from feedrate.analysis.question_sections import FRAMES, TABLES, what_if_section
        from feedrate.analysis.sections import headline, title
        from feedrate.analysis.summary import ranking

        run = load_run(args.run)
        if args.json:
            tables = {name: records(what_if(run, **asked) if name == WHAT_IF else FRAMES[name](run)) for name in names}
            facts = {"run": run.path, "title": title(run), "headline": headline(run, ranking(run)), "finished": not run.unfinished}
            answer("show", facts | {"unit": run.unit, "tables": tables, "problems": run.problems})
            return None
        console = terminal()
        console.print(f"{title(run)}\n{headline(run, ranking(run))}", markup=False, highlight=False)
        for name in names if args.table != "all" or len(run.trials) else ():
            question, build = TABLES[name]
            print_section(console, what_if_section(run, outlook_of(run, **asked)) if name == WHAT_IF else build(run), question, args.rows)
        for problem in run.problems:
            console.print(f"note: {problem}", markup=False, highlight=False)
        return None


def _asked(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return the changes that the user names, as arguments of `what_if`."""
    given = [name for name, value in (("--ceiling", args.ceiling), ("--ranks", args.ranks)) if value is not None]
    if given and WHAT_IF not in names:
        raise UsageError(f"{' and '.join(given)} would have no effect: add {WHAT_IF} to --table")
    if args.ceiling is not None and not 0 < args.ceiling < math.inf:
        raise UsageError(f"--ceiling must be above 0, not {args.ceiling:g}")
    if args.ranks is not None and args.ranks < 1:
        raise UsageError(f"--ranks must be 1 or more, not {args.ranks}")
    return {"ceiling_sps": args.ceiling, "num_ranks": args.ranks}


class Export:
    """Print or save the best setting of a run, as JSON or as Python to paste.

    feedrate export feedrate-runs/images-1
    feedrate export feedrate-runs/images-1 --format python
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", help=RUN)
        parser.add_argument("-o", "--output", metavar="FILE", help="write to this file (default: print)")
        parser.add_argument("--format", choices=("json", "python"), default="json")
        parser.add_argument("--force", action="store_true", help="replace the file")
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        from feedrate.analysis.best import is_final, load_best, python_snippet
        from feedrate.analysis.load import load_run
        from feedrate.analysis.remote import is_url
        from feedrate.analysis.run_folder import RunFolder, write_atomic
        from feedrate.search.result import conclude

        folder = RunFolder(args.run)
        if not is_url(args.run):
            folder.read_search()  # refuses a folder that is no run, even if there is a best.json in it
        if is_url(args.run):
            best = load_best(args.run).raw
        elif folder.best.exists() and is_final(kept := _kept(folder)):
            best = kept
        else:
            run, found = load_run(folder.path), conclude(folder, None).best
            if found is None and run.trials.empty:
                raise NothingFound(f"nothing was measured yet in the search in {folder.path}", folder.path)
            if found is not None and run.unfinished:
                print("note: the search is not finished; this is its best setting so far, which is not confirmed", file=sys.stderr)
            if found is None:
                raise NothingFound(f"no setting worked in the search in {folder.path}. To see why, run: feedrate report {folder.path}", folder.path)
            best = found
        text = json.dumps(best, indent=2) + "\n" if args.format == "json" else python_snippet(best) + "\n"
        answer("export", {"run": args.run, "best": best, "python": python_snippet(best), "output": args.output})
        if args.output is None:
            print("" if args.json else text, end="")
            return None
        path = Path(args.output)
        if path.exists() and not args.force:
            raise UsageError(f"{path} exists: name another file, or replace it with --force")
        try:
            write_atomic(path, text)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None
        print(path)
        return None


def _kept(folder: RunFolder) -> dict[str, Any]:
    """Return the content of best.json."""
    from feedrate.analysis.best import load_best
    from feedrate.analysis.run_folder import RunError

    try:
        return load_best(folder.best).raw
    except RunError as error:
        raise UsageError(f"{error}. Move the file away; export then computes the answer again from trials.jsonl") from None
