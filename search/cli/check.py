"""`feedrate check`: find out whether changing the loader changes the data. Runs without Ray."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from feedrate.search.cli import measure
from feedrate.search.options import refusal
from feedrate.search.terminal import arguments
from feedrate.search.terminal.machine_output import answer

if TYPE_CHECKING:
    from feedrate.trainables.failure import Failure

CHANGES_DATA = 1
WORDS = {"error": "ERROR", "warning": "warning", "note": "note", "ok": "ok"}


class Check:
    """Check whether changing the loader changes the data: order, duplicates, random streams, pickling, fork-safety.

    Compares the data that the loader delivers without workers and with workers: every sample once, the same bytes,
    different random numbers in every worker. Exit code 1 if a setting would train on different data.

      feedrate check train.py:workload
      feedrate check train.py:workload --num-workers 4 --json
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        arguments.add_workload(parser)
        parser.add_argument(
            "--num-workers", type=arguments.whole(2), default=2, metavar="N", help="number of workers to compare with 0 workers (default 2)"
        )
        parser.add_argument(
            "--time-budget",
            dest="budget_s",
            type=arguments.positive_s,
            default=30.0,
            metavar="TIME",
            help="approximate time for the check; if samples are slow, fewer of them are checked (default 30s)",
        )
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        report, failure = _checked(args)
        if failure is not None:
            what = f"feedrate: loading samples fails ({failure.kind})"
            return measure.show_failure(args.json, failure, what)
        if args.json:
            answer("check", report)
        else:
            _print_report(report)
        return CHANGES_DATA if report["changes_data"] is not False else None


def _checked(args: argparse.Namespace) -> tuple[dict[str, Any], Failure | None]:
    """Return the report, or the failure because of which the samples could not be loaded."""
    from feedrate.trainables.protocol import Checked, Checking, CheckRequest, Failed, News, Silent, outcome

    def on_news(news: News) -> None:
        if isinstance(news, Checking):
            print(f"{news.name} ...", file=sys.stderr, flush=True)
        elif isinstance(news, Silent):
            print(f"still at it, for {news.silent_s:.0f} s", file=sys.stderr, flush=True)

    template = measure._template(args)
    try:
        request = CheckRequest(num_workers=args.num_workers, budget_s=args.budget_s)
        end = outcome(template.run(request), Checked, on_news)
    finally:
        template.close()
    if not isinstance(end, Failed):
        return end.report, None
    if end.usage:
        raise refusal(end)
    return {}, end.failure


def _print_report(report: dict[str, Any]) -> None:
    of = "" if report["epoch_samples"] is None else f" of {report['epoch_samples']:,}"
    print(
        f"{report['workload']}: {report['num_samples']:,}{of} samples, with 0 and with {report['num_workers']} workers, "
        f"in {report['seconds']:.0f} s\n"
    )
    for finding in report["findings"]:
        head = f"{WORDS[finding['level']]:8} {finding['name']:20} "
        print(textwrap.fill(head + finding["sentence"], 120, subsequent_indent=" " * len(head)))
        if finding["fix"] and finding["level"] in ("error", "warning"):
            print("\n".join(f"{' ' * len(head)}| {line}" for line in finding["fix"].splitlines()))
    print(f"\n{_summary(report)}")


def _summary(report: dict[str, Any]) -> str:
    names = [finding["name"] for finding in report["findings"] if finding["level"] == "error"]
    if report["changes_data"] is None:
        if "batches" in names:
            return "The loader delivers only empty batches (see `batches` above), so whether another setting would change the data is not known."
        return "The loader does not work with workers (see `loading` above), so what data they would deliver is not known."
    if names:
        return f"Changing the loader changes the data: {', '.join(names)}. docs/check.md explains each."
    return "Changing the loader does not change the data, as far as these samples tell."
