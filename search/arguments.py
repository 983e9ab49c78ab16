"""Command-line arguments that several subcommands share, checked while they are parsed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from feedrate.analysis import command_line
from feedrate.search.machine_output import FLAG
from feedrate.search.options import PRECISIONS, UsageError, parse_config, parse_duration_s, without_password

WORKLOAD_HELP = "a bundled name (see `feedrate workloads`), package.module:function, or path/to/file.py:function"
DIMENSIONS = {
    "num_workers": ("0..32", "loader processes"),
    "batch_size": ("32,64,128", "items in a batch; one value fixes it"),
    "pin_memory": ("true,false", "page-locked batches; only with a GPU"),
    "prefetch_factor": ("1,2,4,8", "batches in flight per worker"),
    "persistent_workers": ("true,false", "workers survive the epoch"),
    "multiprocessing_context": ("fork,forkserver,spawn", "how workers start; searched only when given"),
    "in_order": ("true,false", "false: batches as they are ready, in no order; searched only when given"),
    "sharing_strategy": ("file_descriptor,file_system", "how workers hand tensors over; searched only when given"),
    "trainer_cpus": ("none,1,2", "CPUs kept for the trainer alone; searched only when given"),
}


SWITCHES = ("--debug", "--require-token", "--allow-unauthenticated", FLAG, "--follow", "-f", "--dry-run")
"""Flags without a value that `without` takes out."""


def checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type whose ValueError becomes the message that people see."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def whole(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least`."""

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
    """An argparse type: a number of CPUs, or "all"."""
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
    """A command line without these flags and their values."""
    switches = [flag for flag in flags if flag in SWITCHES]
    return command_line.without(argv, [flag for flag in flags if flag not in switches], switches)


def refuse_password(storage: str | None, shown: str, there: str) -> None:
    """Refuse a database address with a password on a command line that others can read.

    Args:
        storage: what --storage says.
        shown: where others read the command line.
        there: the machine on which the password has to be instead.

    Raises:
        UsageError: it holds a password; the message names the ways in which nobody else sees it.
    """
    if storage is not None and without_password(storage) != storage:
        raise UsageError(f"--storage holds a password, and {shown}: put it into PGPASSWORD or ~/.pgpass {there}, and leave it out of the URL")


def add_json(parser: argparse._ActionsContainer) -> None:
    """The switch of every command that prints facts (machine_output.py)."""
    parser.add_argument(FLAG, action="store_true", help="print one JSON object and nothing else; progress goes to standard error (docs/json.md)")


API_ADDRESS = "the cluster's Jobs API, such as http://localhost:8265 (default: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS where that is a URL)"


def api_address() -> str | None:
    """Return the Jobs API that the environment names, as Ray's own commands do."""
    named = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    return named if named.startswith(("http://", "https://")) else None


def ray_address() -> str | None:
    """Return the cluster that ray.init would join by its environment; None where that is a Jobs API, or nothing."""
    named = os.environ.get("RAY_ADDRESS") or None
    return None if named is not None and "://" in named else named


REQUIRE_TOKEN = "FEEDRATE_REQUIRE_TOKEN"
"""Environment variable that stands for --require-token."""


def add_require_token(parser: argparse._ActionsContainer) -> None:
    """Of the commands that use a cluster."""
    parser.add_argument(
        "--require-token",
        action="store_true",
        default=os.environ.get(REQUIRE_TOKEN, "0") not in ("", "0"),
        help=f"refuse a cluster without token authentication (default: use it and print a warning; {REQUIRE_TOKEN}=1 does the same)",
    )
    parser.add_argument("--allow-unauthenticated", action=_NoLongerNeeded, help=argparse.SUPPRESS)


class _NoLongerNeeded(argparse.Action):
    """A switch of an earlier release, accepted with a note."""

    def __init__(self, **given: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, **given)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        print(f"note: {option} does nothing any more, and the next release refuses it: leave it out", file=sys.stderr)


def add_workload(parser: argparse.ArgumentParser) -> None:
    """WORKLOAD and the options of the bundled ones."""
    parser.add_argument("workload", metavar="WORKLOAD", help=WORKLOAD_HELP)
    group = parser.add_argument_group("bundled workloads")
    group.add_argument(
        "--data",
        metavar="DIR|URL",
        help="images: a folder of JPEG files, a class per sub-folder; objects: a URL with an index.txt (default: a set made once in your cache folder)",
    )
    group.add_argument("--image-size", type=whole(8), metavar="PX", help="images, objects: side of the training crop")
    group.add_argument("--model", metavar="NAME", help="images, objects: resnet18, resnet50 or small")
    group.add_argument(
        "--latency",
        dest="latency_s",
        type=duration_s,
        metavar="TIME",
        help="objects: the local server answers after this long (default 40ms)",
    )


def workload_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a bundled workload that were given."""
    names = ("data", "image_size", "model", "latency_s")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def add_trial(parser: argparse.ArgumentParser) -> None:
    """How one setting is measured."""
    parser.add_argument(
        "--max-trial-s",
        type=checked(_positive),
        default=20.0,
        metavar="S",
        help="wall time at most for one setting, set-up apart (default 20)",
    )
    parser.add_argument(
        "--epoch-samples", type=whole(1), metavar="N", help="items in your real epoch (default: the dataset's length)"
    )
    parser.add_argument(
        "--objective",
        choices=("epoch", "steady"),
        default="epoch",
        help="rate over a whole epoch with its start-up, or between epoch boundaries (default epoch)",
    )
    parser.add_argument(
        "--threads",
        type=whole(1),
        metavar="N",
        help="torch's threads in the trainer (default: what plain Python would have)",
    )
    group = parser.add_argument_group("the training step of the short form (a step of your own has its own)")
    group.add_argument("--amp", choices=PRECISIONS, help="forward and loss under autocast (default: the model's own)")
    group.add_argument("--compile", action="store_true", help="torch.compile the model; compiling is not timed")


def _positive(text: str) -> float:
    if text.strip().startswith("-") or not (value := parse_duration_s(text)) > 0:
        raise ValueError(f"must be positive, not {text.strip()}")
    return value


positive_s = checked(_positive)
