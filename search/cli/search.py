"""`feedrate search`: search for the best settings, and print the answer. `feedrate resume` prints its answer with `finish`, too."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from feedrate.search.options import SAMPLERS, SHARES, NothingFound, SearchOptions, UsageError
from feedrate.search.shipping.submission import Submission
from feedrate.search.terminal import arguments
from feedrate.search.terminal.machine_output import answer, records

if TYPE_CHECKING:
    import pandas as pd

    from feedrate.analysis.run import Run
    from feedrate.search.result import SearchResult

LOCAL = "local"
"""Value of --address for a Ray that the command itself starts and stops, even if RAY_ADDRESS names a cluster."""
NO_COMPARISON = 1
"""Exit code of a search that has an answer, but could not measure the user's own setting on any host."""
DRIVER_SHOWN = "Ray shows the command line of a driver to everybody on the cluster, as ps does on this machine"


class Search:
    """Search for the fastest DataLoader settings, by training your model with them.

    Measures your own setting first, then searches num_workers, batch_size, pin_memory, prefetch_factor and
    persistent_workers, and writes a run folder with best.json, whose "dataloader" goes straight into DataLoader(**...).

      feedrate search -- python train.py --data /data
      feedrate search images
      feedrate search train.py:workload --time-budget 3m --batch-size 64
      feedrate search my_project.train:workload --address auto --num-workers 0..24
    """

    address_help = (
        "a running Ray cluster, such as auto or HOST:6379 (default: RAY_ADDRESS, else local: a Ray that the command starts and stops)"
    )

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        arguments.add_workload(parser)
        space = parser.add_argument_group("what is searched: a range such as 0..32, a list such as 32,64, or one value")
        for name, (example, text) in arguments.DIMENSIONS.items():
            space.add_argument(f"--{name.replace('_', '-')}", metavar=example, help=text)
        _add_search(parser.add_argument_group("the search"))
        arguments.add_trial(parser)
        _add_place(parser.add_argument_group("where it runs"), self.address_help)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        args.address = None if args.address == LOCAL else args.address or arguments.ray_address()
        options, space = options_of(args)
        if args.address is not None:
            arguments.refuse_password(args.storage, DRIVER_SHOWN, "here")
        from feedrate.search.engine.reservation import SeveralClasses
        from feedrate.search.run import run_search
        from feedrate.search.terminal.fan_out import one_each

        try:
            return finish(
                lambda: run_search(
                    args.workload if args.script is None else args.script,
                    options=options,
                    space=space,
                    workload_options=arguments.workload_options(args),
                    loader=args.loader,
                    out=args.out,
                    force=args.force,
                    quiet=args.quiet,
                    argv=argv,
                ),
                "search",
                args.json,
            )
        except SeveralClasses as several:
            objects: dict[str, Any] = {}
            code = one_each(several.names, argv, several.out, objects if args.json else None)
            answer("search", dict.fromkeys(SEARCH_FIELDS) | {"run": several.out.absolute(), "by_hardware": objects})
            return code


def _add_search(run: argparse._ArgumentGroup) -> None:
    """Add the options for the length of a search, where it begins, and what decides its answer."""
    run.add_argument(
        "--out",
        metavar="DIR|URL",
        help="run folder (default: the next free feedrate-runs/NAME-N); an address such as s3://bucket/NAME keeps a copy there",
    )
    run.add_argument("--force", action="store_true", help="replace a run that is already in --out")
    run.add_argument(
        "--time-budget",
        dest="time_budget_s",
        type=arguments.positive_s,
        default=300.0,
        metavar="TIME",
        help="time for trials, such as 90s, 5m or 1h (default 5m); starting and ending Ray take 15 to 20 s more",
    )
    run.add_argument("--max-trials", type=arguments.whole(1), metavar="N", help="maximum number of settings to try")
    run.add_argument(
        "--baseline",
        type=arguments.setting,
        metavar="NAME=VALUE,...",
        help="the setting to compare with (default: your loader's, else torch's default)",
    )
    run.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="gp",
        help="how settings are proposed: gp uses a model of data loading, tpe and random are Optuna's (default gp)",
    )
    run.add_argument(
        "--seed",
        type=arguments.whole(0),
        default=0,
        metavar="N",
        help="seed of the sampler, the data order and the model (default 0)",
    )
    run.add_argument(
        "--allow-duplicates",
        action="store_true",
        help="also search settings that repeat data (see feedrate check); their rates count the repeated samples",
    )
    run.add_argument(
        "--warm-start",
        metavar="RUN",
        help="first try the best settings of an earlier run of the same workload on the same hardware (default: none)",
    )
    run.add_argument(
        "--keep-going",
        action="store_true",
        help="continue to --max-trials or the end of --time-budget, even if no further gain is expected",
    )
    run.add_argument(
        "--no-confirm",
        dest="confirm",
        action="store_false",
        help="no confirmation rounds: give the answer after measuring each setting once (default: measure the best settings and your own again, in rounds)",
    )
    run.add_argument("--quiet", action="store_true", help="print only the answer")
    arguments.add_json(run)


def _add_place(place: argparse._ArgumentGroup, address_help: str) -> None:
    """Add the options for the machines of a search, and the resources of a trial on them."""
    place.add_argument(
        "--address",
        metavar="ADDR",
        help=address_help,
    )
    arguments.add_require_token(place)
    place.add_argument(
        "--hardware",
        metavar="NAME",
        help="use only nodes whose hardware class contains NAME (default: one answer for each class in the cluster)",
    )
    place.add_argument(
        "--gpus-per-trial", type=arguments.whole(0), metavar="N", help="GPUs per trial (default: 1 if there is a GPU, else 0)"
    )
    place.add_argument(
        "--hosts-per-trial", type=arguments.whole(1), default=1, metavar="N",
        help="start a torchrun command on N hosts of the cluster at once, as one training (default 1); --gpus-per-trial and --cpus-per-trial count per host",
    )  # fmt: skip
    place.add_argument(
        "--cpus-per-trial",
        type=arguments.cpus,
        metavar="N|all",
        help="CPUs per trial (default: all CPUs of the node, or with GPUs an equal share per GPU). The value all reserves as many, but uses every CPU",
    )
    place.add_argument(
        "--exclusive",
        action="store_true",
        help="reserve whole nodes of a cluster, so that Ray runs nothing else beside a trial",
    )
    place.add_argument(
        "--share",
        choices=SHARES,
        help="host: run as many trials at once on a host as its GPUs allow, each on its own GPUs and CPUs. They share disk and memory "
        "bandwidth, so the rates are those of a shared host (default: one trial per host at a time)",
    )
    place.add_argument(
        "--wait",
        dest="wait_s",
        type=arguments.duration_s,
        metavar="TIME",
        help="how long to wait for a busy host before measuring anyway; the report notes it (default 10m with --address, else 0)",
    )
    place.add_argument(
        "--storage",
        metavar="URL",
        help="Optuna database, such as sqlite:///studies.db (default: a journal file in the run folder)",
    )


def options_of(args: argparse.Namespace) -> tuple[SearchOptions, dict[str, Any]]:
    """Return the options of the search, and the dimensions that were given.

    Raises:
        UsageError: a value cannot work.
    """
    from feedrate.search.space.dimension import parse_dimension

    try:
        space = {
            name: parse_dimension(name, getattr(args, name))
            for name in arguments.DIMENSIONS
            if getattr(args, name) is not None
        }
        given = {name: getattr(args, name) for name in SearchOptions.__dataclass_fields__ if name != "pin_cpus"}
        if given["cpus_per_trial"] == arguments.ALL:
            given |= {"cpus_per_trial": None, "pin_cpus": False}
        return SearchOptions(**given), space
    except ValueError as error:
        raise UsageError(str(error)) from None


SEARCH_FIELDS = (
    "run", "best", "best_path", "report_path", "stop_reason", "open", "settle_command", "num_trials", "num_failed", "failures",
    "by_hardware",
)  # fmt: skip


def _facts(result: SearchResult, run: Run) -> dict[str, Any]:
    """Return the fields that search and resume print with --json."""
    from feedrate.search.answers.wording import settling

    folder = result.folder.absolute()
    is_open = result.best["search"]["open"] if result.best is not None else []
    failures = result.failures[["config", "hostname", "failure_kind", "failure_phase", "failure_message"]]
    values = (
        folder, result.best, folder / "best.json", folder / "report.html", result.stop_reason, is_open, settling(result),
        int((run.latest["kind"] != "confirm").sum()), len(result.failures), records(failures), None,
    )  # fmt: skip
    return dict(zip(SEARCH_FIELDS, values, strict=True))


def finish(search: Any, command: str, as_json: bool) -> int | None:
    """Run a search, write its report, print its answer, and return the exit code, or None for 0.

    Args:
        search: runs the search and returns its `SearchResult`.
        command: search or resume, for the object that --json prints.
        as_json: print that object instead of text.

    Raises:
        NothingFound: no setting can be the answer.
    """
    from rich.console import Console

    from feedrate.analysis.load import load_run
    from feedrate.search.answers.wording import print_result
    from feedrate.search.record import SearchRecord

    result = search()
    run = load_run(result.folder)
    from feedrate.analysis.page import write_page

    write_page(run, result.folder / "report.html")
    record = SearchRecord.of(run)
    if record.mirror is not None:
        from feedrate.search.service.mirror import Mirror

        Mirror(result.folder, record.mirror, lambda text: print(text, file=sys.stderr)).push()
    if result.best is None:
        reasons = _reasons(result.failures)
        left_out = record.disqualified.in_words()
        if left_out and not result.ranking.empty:
            why = "; ".join(f"{which}: {reason}" for which, reason in left_out)
            raise NothingFound(
                f"there is no answer in {result.folder}: every setting that was measured delivers the same data more than once ({why}). "
                "Fix the dataset (feedrate check shows how), or pass --allow-duplicates",
                result.folder.absolute(),
            )
        raise NothingFound(f"no setting worked in {result.folder}: {reasons or result.stop_reason}", result.folder.absolute())
    code = None
    if not result.baseline_failures.empty:
        reasons = _reasons(result.baseline_failures)
        print(f"feedrate: your own setting failed, so there is nothing to compare the answer with: {reasons}", file=sys.stderr, flush=True)
        code = NO_COMPARISON
    if as_json:
        answer(command, _facts(result, run))
        return code
    console = Console(width=None if sys.stdout.isatty() else 160)
    print_result(result, console, run.unit)
    console.print(f"Report: {result.folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Saved: {result.best_path}", markup=False, highlight=False, soft_wrap=True)
    if (submission := Submission.from_environment()) is not None and submission.fetch:
        console.print(f"Both are on the cluster's head. To copy them: {submission.fetch}", markup=False, highlight=False, soft_wrap=True)
    return code


def _reasons(failures: pd.DataFrame) -> str:
    """Return one failure message for each reason, with the hosts on which it occurred if there are several hosts."""
    from feedrate.search.answers.wording import reasons_of

    failures = failures.dropna(subset=["failure_message"])
    reasons = []
    for _, group in failures.groupby(reasons_of(failures), sort=False):
        hosts = sorted(group["hostname"].dropna().unique())
        where = f" (on {', '.join(hosts)})" if failures["hostname"].nunique() > 1 else ""
        reasons.append(f"{group['failure_message'].iloc[0]}{where}")
    return "; ".join(reasons)
