"""`feedrate compare` and `feedrate runs`: compare two runs, list runs, and free disk space."""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from feedrate.search.cli.report import RUN, print_section, terminal
from feedrate.search.options import UsageError
from feedrate.search.terminal import arguments
from feedrate.search.terminal.machine_output import answer, records

if TYPE_CHECKING:
    from feedrate.analysis.run import Run
    from feedrate.analysis.two_runs import Compared


class Compare:
    """Compare two runs of one workload, setting by setting: did a change of code, torch or machine matter?

    feedrate compare feedrate-runs/images-1 feedrate-runs/images-2
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("first", metavar="A", help=RUN)
        parser.add_argument("second", metavar="B", help="the second run; ratios are B divided by A")
        parser.add_argument("--rows", type=int, default=20, metavar="N", help="maximum number of settings to print (default 20); --json has all of them")
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        if args.rows < 1:
            raise UsageError(f"--rows must be 1 or more, not {args.rows}")
        from feedrate.analysis.load import load_run
        from feedrate.analysis.question_sections import compared_section
        from feedrate.analysis.sections import headline
        from feedrate.analysis.summary import ranking
        from feedrate.analysis.two_runs import compare

        first, second = load_run(args.first), load_run(args.second)
        compared = compare(first, second)
        if args.json:
            answer("compare", _facts(compared, first, second))
            return None
        console = terminal()

        def say(text: str) -> None:
            console.print(text, markup=False, highlight=False)

        for name, run in (("A", first), ("B", second)):
            say(f"{name} {run.path}: {headline(run, ranking(run))}")
        print_section(console, compared_section(compared, first, second), "settings that both measured", args.rows)
        say("")
        if compared.overall is not None:
            ratio = compared.overall
            over = f"Over all {len(compared.settings)} settings"
            say(f"{over}: the rate of B is {ratio.sps:.3f} times that of A (95 % interval {ratio.low_sps:.3f}-{ratio.high_sps:.3f}).")
            if compared.same_host:
                say("Both runs used the same host. If it was slower during one whole run, that is part of this ratio, but not of the speed-ups.")
        for name, run in (("A", first), ("B", second)):
            if run.configs.empty:
                say(f"{name} measured nothing that could be compared.")
        if not compared.same_host and not compared.settings.empty:
            say("The runs used different hosts, so the rates also differ because of the machines: compare the speed-ups.")
        for difference in compared.differences:
            say(f"Differs: {difference}")
        for run in (first, second):
            for problem in run.problems:
                say(f"note: {run.path}: {problem}")
        return None


def _facts(compared: Compared, first: Run, second: Run) -> dict[str, Any]:
    overall = compared.overall
    return {
        "first": first.path,
        "second": second.path,
        "settings": records(compared.settings),
        "ratio": None if overall is None else overall.sps,
        "ratio_ci95": None if overall is None else [overall.low_sps, overall.high_sps],
        "same_host": compared.same_host,
        "differences": list(compared.differences),
        "problems": [f"{run.path}: {problem}" for run in (first, second) for problem in run.problems],
    }


class Runs:
    """List runs with their workload, date, host and best setting, or free disk space.

    feedrate runs
    feedrate runs elsewhere
    feedrate runs --address http://localhost:8265     the searches that were submitted there
    feedrate runs --prune                             list what finished runs do not need any more (Ray Tune's state)
    feedrate runs --prune --yes                       remove it
    feedrate runs --prune --whole --older-than 90d    list runs that are finished or not, and were not written to for 90 days
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="a pattern that matches run folders, or the folder that contains them (default: this folder and feedrate-runs; with --prune only feedrate-runs)")
        arguments.add_json(parser)
        parser.add_argument(
            "--address", nargs="?", const="", metavar="URL", help=f"instead of local runs, list the searches that were submitted to a cluster: {arguments.API_ADDRESS}"
        )
        arguments.add_require_token(parser)
        room = parser.add_argument_group("freeing disk space")
        room.add_argument("--prune", action="store_true", help="list what can be removed: Ray Tune's state in finished runs, which takes most of the space")
        room.add_argument("--whole", action="store_true", help="remove whole runs instead")
        room.add_argument(
            "--older-than", dest="older_than_s", type=arguments.positive_s, metavar="TIME",
            help="only runs last changed at least this long ago, such as 30d, also unfinished ones (default: finished runs of any age)",
        )  # fmt: skip
        room.add_argument("--keep", action="append", default=[], metavar="RUN", help="a run to keep, by name, path or pattern; may be given several times")
        room.add_argument("--yes", action="store_true", help="remove what is listed")

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        if args.prune:
            return _prune(args)
        if args.whole or args.yes or args.keep or args.older_than_s is not None:
            raise UsageError("--whole, --older-than, --keep and --yes belong to --prune")
        if args.address is not None:
            from feedrate.search.cli.submit import print_searches

            print_searches(args)
            return None
        from feedrate.analysis.question_sections import runs_section
        from feedrate.analysis.runs import load_runs, runs_table

        with warnings.catch_warnings(record=True) as left_out:
            warnings.simplefilter("always")
            table = runs_table(load_runs(args.pattern or "."))
        if args.json:
            answer("runs", {"runs": records(table), "left_out": [str(warning.message) for warning in left_out]})
        else:
            print_section(terminal(), runs_section(table), "runs, the oldest first", len(table))
        for warning in left_out:
            print(f"note: {warning.message}", file=sys.stderr)
        return None


def _prune(args: argparse.Namespace) -> int | None:
    """List or remove what finished or old runs no longer need (`feedrate runs --prune`)."""
    from feedrate.analysis.remote import is_url
    from feedrate.analysis.runs import run_folders
    from feedrate.search.service.retention import Policy, prune

    if args.address is not None or is_url(args.pattern or ""):
        raise UsageError("--prune is only for run folders on this machine. For those on a cluster's head, run the command there")
    folders = run_folders(args.pattern or "feedrate-runs/*")
    for pattern in args.keep:
        if not any(fnmatch.fnmatch(name, pattern) for folder in folders for name in (folder.name, str(folder))):
            raise UsageError(f"--keep {pattern} matches none of these runs, so nothing was removed")
    policy = Policy(whole=args.whole, older_than_s=args.older_than_s, keep=args.keep)
    removed, kept = prune(folders, policy, now_unix_s=time.time(), remove=args.yes)
    num_bytes = sum(removal.num_bytes for removal in removed)
    facts = {"removed": [asdict(removal) for removal in removed], "kept": [asdict(each) for each in kept]}
    answer("prune", facts | {"num_bytes": num_bytes, "done": args.yes})
    if args.json:
        return None
    verb = "removed" if args.yes else "would remove"
    for removal in removed:
        print(f"{verb} {removal.what} of {removal.path}: {removal.num_bytes / 1e6:,.1f} MB")
    for each in kept:
        print(f"keeps {each.path}: {each.why}")
    print(f"{num_bytes / 1e6:,.1f} MB" + ("" if args.yes or not removed else "; --yes removes it"))
    return None
