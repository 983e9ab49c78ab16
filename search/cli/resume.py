"""`feedrate resume`: continue a search, here or on the cluster that it was submitted to."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from feedrate.analysis.run_folder import RunFolder
from feedrate.search.cli.search import DRIVER_SHOWN, finish
from feedrate.search.cli.submit import resume_there
from feedrate.search.options import UsageError
from feedrate.search.shipping import job_environment
from feedrate.search.terminal import arguments


class Resume:
    """Continue an interrupted search, or extend a finished one.

    feedrate resume feedrate-runs/images-1 --time-budget 5m
    feedrate resume images-3fa9c1 --address http://localhost:8265     a submitted one, from the same folder
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", help="the run folder, or the address of its copy; with --address, the ID of a submitted search")
        parser.add_argument(
            "--time-budget",
            dest="time_budget_s",
            type=arguments.positive_s,
            metavar="TIME",
            help="time limit, counted from now (default: as long as the run's own budget)",
        )
        parser.add_argument(
            "--max-trials",
            type=arguments.whole(1),
            metavar="N",
            help="total number of settings, including those already tried; continues even if no further gain is expected",
        )
        parser.add_argument("--confirm", action="store_true", help="measure the best settings again in rounds, even if the run was started with --no-confirm")
        parser.add_argument("--storage", metavar="URL", help="the URL of the run's database: needed only if the URL contains a password, because passwords are not stored")
        parser.add_argument("--address", metavar="URL", help=f"the cluster that the search was submitted to: {arguments.API_ADDRESS}")
        arguments.add_require_token(parser)
        job_environment.add_to(parser)
        parser.add_argument("-f", "--follow", action="store_true", help="with --address: print the search's log until it ends, and exit with its exit code")
        parser.add_argument("--quiet", action="store_true", help="print only the answer")
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        from feedrate.analysis.remote import is_url  # it imports pyarrow, which --help does not need

        if args.address is None and not is_url(args.run) and not Path(args.run).exists():
            args.address = arguments.api_address()
        if args.address is not None:
            return resume_there(args, argv)
        if args.env or args.pip:
            raise UsageError("--env and --pip are only for a submitted search (--address URL): a search on this machine has this shell's environment")
        if args.follow:
            raise UsageError("--follow is only for a submitted search (--address URL): a search on this machine is followed anyway")
        from feedrate.search.record import SearchRecord
        from feedrate.search.resume import resume_search
        from feedrate.search.service.mirror import bring

        folder = RunFolder(bring(args.run))
        if SearchRecord.read(folder).options.address is not None:
            arguments.refuse_password(args.storage, DRIVER_SHOWN, "here")
        return finish(
            lambda: resume_search(
                folder.path,
                time_budget_s=args.time_budget_s,
                max_trials=args.max_trials,
                storage=args.storage,
                confirm=args.confirm,
                quiet=args.quiet,
            ),
            "resume",
            args.json,
        )
