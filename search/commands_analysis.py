"""`feedrate report` and `feedrate export`: what a run folder says."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from feedrate.search.options import NothingFound, UsageError

FORMATS = ("html", "csv", "parquet", "markdown")


class Report:
    """Write the report page and tables of a run, also while it is going on.

    feedrate report feedrate-runs/images-1
    feedrate report feedrate-runs/images-1 --format csv,parquet,markdown
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", help="the run folder")
        parser.add_argument(
            "--format", default="html", metavar="LIST", help=f"any of {','.join(FORMATS)} (default html)"
        )
        parser.add_argument("-o", "--output", metavar="DIR", help="where to write (default: the run folder)")

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        from feedrate.analysis.export import export_tables
        from feedrate.analysis.load import load_run
        from feedrate.analysis.page import write_page

        formats = [word.strip() for word in args.format.split(",") if word.strip()]
        unknown = [word for word in formats if word not in FORMATS]
        if unknown or not formats:
            raise UsageError(f"--format takes any of {', '.join(FORMATS)}, not {args.format!r}")
        run = load_run(args.run)
        folder = Path(args.output) if args.output else run.path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written = export_tables(run, folder, [word for word in formats if word != "html"])
            if "html" in formats:
                write_page(run, folder / "report.html")
                written.append(folder / "report.html")
        except OSError as error:
            raise UsageError(f"the report cannot be written to {folder}: {error.strerror}") from None
        for problem in run.problems:
            print(f"note: {problem}")
        for path in written:
            print(path)
        return None


class Export:
    """Print or save the best setting of a run, as JSON or as Python to paste.

    feedrate export feedrate-runs/images-1
    feedrate export feedrate-runs/images-1 --format python
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", help="the run folder")
        parser.add_argument("-o", "--output", metavar="FILE", help="write to this file (default: print)")
        parser.add_argument("--format", choices=("json", "python"), default="json")
        parser.add_argument("--force", action="store_true", help="replace the file")

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        from feedrate.analysis.best import load_best, python_snippet
        from feedrate.analysis.run_folder import RunFolder, write_atomic
        from feedrate.search.result import conclude

        folder = RunFolder(args.run)
        folder.read_search()
        if folder.best.exists():
            best = load_best(folder.best).raw
        else:
            found = conclude(folder, None).best
            if found is None:
                raise NothingFound(f"{folder.path} has no setting that worked; feedrate report {folder.path} shows why")
            best = found
        text = json.dumps(best, indent=2) + "\n" if args.format == "json" else python_snippet(best) + "\n"
        if args.output is None:
            print(text, end="")
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
