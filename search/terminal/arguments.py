"""Command-line arguments that several subcommands share, checked while they are parsed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from feedrate.analysis import command_line
from feedrate.analysis.command_line import COMMAND
from feedrate.search.options import PRECISIONS, UsageError, parse_config, parse_duration_s, without_password
from feedrate.search.terminal.machine_output import FLAG

WORKLOAD_HELP = (
    "a bundled name (see `feedrate workloads`), package.module:function, or path/to/file.py:function; or end the line with -- and the "
    "command that starts your training"
)
DIMENSIONS = {
    "num_workers": ("0..32", "loader processes"),
    "batch_size": ("32,64,128", "items per batch (of each rank, if the command starts several); one value fixes it"),
    "pin_memory": ("true,false", "copy batches into page-locked memory; only with a GPU"),
    "prefetch_factor": ("1,2,4,8", "batches that each worker loads ahead"),
    "persistent_workers": ("true,false", "keep workers alive from one epoch to the next"),
    "multiprocessing_context": ("fork,forkserver,spawn", "how workers start; searched only if given"),
    "in_order": ("true,false", "false: deliver batches as soon as they are ready, in any order; searched only if given"),
    "sharing_strategy": ("file_descriptor,file_system", "how workers pass tensors to the training process; searched only if given"),
    "trainer_cpus": ("none,1,2", "CPUs reserved for the training process; searched only if given"),
}


_OPTIONS = ("data", "image_size", "model", "latency_s")
"""Those of bundled workloads."""
SWITCHES = ("--debug", "--require-token", "--allow-unauthenticated", FLAG, "--follow", "-f", "--dry-run")
"""Flags without a value that `without` can remove."""


def checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return an argparse type that shows the message of a ValueError from `parse` to the user."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def whole(least: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
        if value < least:
            raise ValueError(f"must be {least} or more, not {value}")
        return value

    return checked(parse)


ALL = "all"


def cpus(text: str) -> int | str:
    """Parse a number of CPUs, or "all"; an argparse type."""
    count: int | str = ALL if text == ALL else whole(1)(text)
    return count


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


truth = checked(_truth)
duration_s = checked(parse_duration_s)
setting = checked(parse_config)


def without(argv: Sequence[str], *flags: str) -> list[str]:
    """Return a command line without these flags and their values."""
    switches = [flag for flag in flags if flag in SWITCHES]
    return command_line.without(argv, [flag for flag in flags if flag not in switches], switches)


def refuse_password(storage: str | None, shown: str, there: str) -> None:
    """Refuse a database address with a password on a command line that others can read.

    Args:
        storage: the value of --storage.
        shown: a phrase that says where others can read the command line.
        there: a phrase for the machine on which the password must be instead.

    Raises:
        UsageError: the address contains a password; the message names safe places for it.
    """
    if storage is not None and without_password(storage) != storage:
        raise UsageError(f"--storage contains a password, and {shown}. Put the password into PGPASSWORD or ~/.pgpass {there}, and leave it out of the URL")


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add the switch --json, which every command that prints facts has (machine_output.py)."""
    parser.add_argument(FLAG, action="store_true", help="print one JSON object and nothing else; progress goes to standard error (docs/json.md)")


API_ADDRESS = "URL of the cluster's Jobs API, such as http://localhost:8265 (default: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS if that is a URL)"


def api_address() -> str | None:
    """Return the address of the Jobs API that the environment names, as Ray's own commands do; None if it names none."""
    named = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    return named if named.startswith(("http://", "https://")) else None


def ray_address() -> str | None:
    """Return the address of the cluster that ray.init would join by RAY_ADDRESS; None if that is a Jobs API, or not set."""
    named = os.environ.get("RAY_ADDRESS") or None
    return None if named is not None and "://" in named else named


REQUIRE_TOKEN = "FEEDRATE_REQUIRE_TOKEN"
"""Environment variable that has the same effect as --require-token."""


def add_require_token(parser: argparse._ActionsContainer) -> None:
    """Add the switch --require-token, which every command that uses a cluster has."""
    parser.add_argument(
        "--require-token",
        action="store_true",
        default=os.environ.get(REQUIRE_TOKEN, "0") not in ("", "0"),
        help=f"refuse a cluster without token authentication (default: use it and print a warning; {REQUIRE_TOKEN}=1 does the same)",
    )
    parser.add_argument("--allow-unauthenticated", action=_NoLongerNeeded, help=argparse.SUPPRESS)


class _NoLongerNeeded(argparse.Action):
    """A switch of an earlier release that is still accepted, with a note."""

    def __init__(self, **given: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, **given)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        print(f"note: {option} no longer has any effect, and the next release will refuse it: leave it out", file=sys.stderr)


def check_command(args: argparse.Namespace) -> None:
    """Check that there is one workload: the argument WORKLOAD, or a training command in `args.script`.

    Raises:
        UsageError: there is none or both, or the subcommand takes no training command.
    """
    if not hasattr(args, "loader"):
        if args.script is not None and not getattr(args.command, "takes_only_commands", False):
            raise UsageError(f"feedrate {type(args.command).__name__.lower()} takes no training command: leave out {COMMAND} and what follows it")
        return
    if args.script is None and args.workload is None:
        raise UsageError(f"the following arguments are required: WORKLOAD, or {COMMAND} and the command that starts your training, as in {COMMAND} python train.py")
    if args.script is not None and args.workload is not None:
        raise UsageError(f"there are a WORKLOAD ({args.workload}) and a training command ({COMMAND} ...): leave out one of them")
    if args.script is None and (args.loader is not None or args.explain):
        raise UsageError(f"--{'loader' if args.loader else 'explain'} is for training commands ({COMMAND} ...): leave it out")
    if args.script is not None and args.num_ranks is not None:
        raise UsageError(f"--ranks is for a WORKLOAD: start the ranks of a training command with its own launcher, as in {COMMAND} torchrun --nproc-per-node {args.num_ranks} train.py")
    if args.num_ranks is not None and (getattr(args, "amp", None) or getattr(args, "compile", False)):
        raise UsageError(f"--{'amp' if args.amp else 'compile'} and --ranks do not go together: leave --{'amp' if args.amp else 'compile'} out, and let the make_step of a Workload.from_loader do it")
    if args.script is not None and (given := workload_options(args)):
        name = next(iter(given)).removesuffix("_s").replace("_", "-")
        raise UsageError(f"--{name} is an option of bundled workloads: write your training's own options after {COMMAND} and its command")


def start_ranks(args: argparse.Namespace) -> None:
    """Replace a WORKLOAD with --ranks by the training command that starts its ranks."""
    if getattr(args, "num_ranks", None) is None:
        return
    from feedrate.trainables.resolve import ranks_command

    num_hosts = getattr(args, "hosts_per_trial", 1)
    args.script = ranks_command(args.workload, workload_options(args), args.num_ranks, num_hosts=num_hosts)
    args.workload = None
    vars(args).update(dict.fromkeys(_OPTIONS))


def add_workload(parser: argparse.ArgumentParser) -> None:
    """Add the argument WORKLOAD and the options of training commands and of bundled workloads."""
    parser.add_argument("workload", metavar="WORKLOAD", nargs="?", help=WORKLOAD_HELP)
    group = parser.add_argument_group(f"training commands ({COMMAND} python train.py ...)")
    group.add_argument(
        "--loader",
        metavar="N|FILE:LINE",
        help="which of the script's DataLoaders to measure, by its number in the list or its place (default: the one that training reads)",
    )
    group.add_argument("--explain", action="store_true", help="only print how feedrate sees the script: its loaders, and which one is measured")
    group = parser.add_argument_group("workloads in several processes")
    group.add_argument(
        "--ranks",
        dest="num_ranks",
        type=whole(2),
        metavar="N",
        help="train WORKLOAD in N processes of this host that exchange gradients, started by torchrun (not for a training command, which starts its own ranks)",
    )
    group = parser.add_argument_group("bundled workloads")
    group.add_argument(
        "--data",
        metavar="DIR|URL",
        help="images: a folder of JPEG files with one sub-folder per class; objects: the URL of a folder with an index.txt "
        "(default: data that feedrate makes once in your cache folder)",
    )
    group.add_argument("--image-size", type=whole(8), metavar="PX", help="images, objects: width and height of the training crop")
    group.add_argument("--model", metavar="NAME", help="images, objects: the model, one of resnet18, resnet50 and small")
    group.add_argument(
        "--latency",
        dest="latency_s",
        type=duration_s,
        metavar="TIME",
        help="only for the bundled workload objects: how long its local server waits before each answer (default 40ms)",
    )


def workload_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the given options of a bundled workload."""
    return {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}


def add_trial(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how one setting is measured."""
    parser.add_argument(
        "--max-trial-s",
        type=checked(_positive),
        default=20.0,
        metavar="S",
        help="time limit in seconds for measuring one setting, not counting its set-up (default 20)",
    )
    parser.add_argument(
        "--epoch-samples", type=whole(1), metavar="N", help="items in one epoch of your training (default: the dataset's length)"
    )
    parser.add_argument(
        "--objective",
        choices=("epoch", "steady"),
        default="epoch",
        help="which rate to compare: epoch (a whole epoch with its start-up) or steady (between epoch boundaries) (default epoch)",
    )
    parser.add_argument(
        "--threads",
        type=whole(1),
        metavar="N",
        help="torch's intra-op threads in the training process (default: the number that torch chooses by itself, as in a plain script)",
    )
    group = parser.add_argument_group("the training step, for a workload in the short form (one made by Workload.from_loader brings its own step)")
    group.add_argument("--amp", choices=PRECISIONS, help="run the forward pass and the loss under torch.autocast (default: the model's own precision)")
    group.add_argument("--compile", action="store_true", help="compile the model with torch.compile; the compilation itself is not timed")


def _positive(text: str) -> float:
    if text.strip().startswith("-") or not (value := parse_duration_s(text)) > 0:
        raise ValueError(f"must be positive, not {text.strip()}")
    return value


positive_s = checked(_positive)
