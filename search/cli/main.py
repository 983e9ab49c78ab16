"""The `feedrate` command: run the subcommand, print errors, and choose the exit code. No other module does the last two.

--help imports neither torch nor Ray.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any, NoReturn, Protocol

from feedrate.analysis.command_line import split
from feedrate.search.cli.ceilings import Ceilings
from feedrate.search.cli.check import Check
from feedrate.search.cli.measure import Measure, Workloads, explain
from feedrate.search.cli.report import Export, Report, Show
from feedrate.search.cli.resume import Resume
from feedrate.search.cli.runs import Compare, Runs
from feedrate.search.cli.search import Search
from feedrate.search.cli.submit import Fetch, Logs, Status, Stop, Submit
from feedrate.search.cli.train import Train
from feedrate.search.cli.verify import Verify
from feedrate.search.cli.version import Version
from feedrate.search.options import NothingFound, UsageError, WorkloadFailed
from feedrate.search.terminal import arguments
from feedrate.search.terminal.ending import asked, at_the_latest, end_on_signals, ignore_further_signals
from feedrate.search.terminal.machine_output import FLAG, answer_error, is_answered, one_object, print_answer

DONE, NOTHING_FOUND, USAGE = 0, 1, 2


class Command(Protocol):
    """One subcommand. Its name is the class's name in lower case, and its help text is the docstring of the class."""

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        """Add the subcommand's arguments."""

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        """Run the subcommand and return its exit code, or None for 0. It raises UsageError, NothingFound or RunError."""


COMMANDS: tuple[Command, ...] = (
    Search(), Train(), Resume(), Measure(), Ceilings(), Check(), Workloads(),
    Report(), Show(), Export(), Verify(), Compare(), Runs(),
    Submit(), Status(), Logs(), Stop(), Fetch(), Version(),
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    end_on_signals()
    if FLAG not in split(argv)[0]:
        return _run(argv)
    with one_object() as stdout:

        def at_last() -> None:
            if not is_answered():
                answer_error("interrupted", "interrupted")
            print_answer(stdout, _interrupted())

        with at_the_latest(at_last):
            code = _run(argv)
        with contextlib.suppress(BrokenPipeError):
            print_answer(stdout, code)
    return code


def _run(argv: Sequence[str]) -> int:
    """Run the command, print what went wrong, and return the exit code."""
    words, script = split(argv)
    if not argv:
        _say(_parser().format_help())
        return USAGE
    try:
        args, unknown = _parser().parse_known_args(_joined(words))
        if unknown:
            name = type(args.command).__name__.lower()
            raise UsageError(f"unknown argument {unknown[0]} (see feedrate {name} --help)")
        args.script = script
        arguments.check_command(args)
        if not isinstance(args.command, Submit):  # the cluster does it there, where its Python is
            arguments.start_ranks(args)
        with _naming_written_files(script is not None and not isinstance(args.command, (Submit, Train))):
            if getattr(args, "explain", False):
                explain(args)
                return DONE
            return args.command.run(args, argv) or DONE
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or "interrupted"
        ignore_further_signals()
        answer_error(said, "interrupted", **getattr(interrupt, "facts", {}))
        _say(said)
        return _interrupted()
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone; Python would print an error about it at exit
        return DONE
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        sentence, kind, code = _verdict(error)
        answer_error(sentence, kind, **getattr(error, "facts", {}))
        _say(f"feedrate: {sentence}")
        return code


@contextlib.contextmanager
def _naming_written_files(is_script: bool) -> Iterator[None]:
    """At the end, name the files that a training script wrote into the current folder."""
    if not is_script:
        yield
        return
    from feedrate.search.setup.written_files import WrittenFiles

    written = WrittenFiles(".")
    try:
        yield
    finally:
        if (remark := written.remark()) is not None:
            _say(f"note: {remark}")


def _interrupted() -> int:
    return 128 + (asked() or signal.SIGINT)


def _joined(argv: Sequence[str]) -> list[str]:
    """Return a command line with negative values joined to their flags (--time-budget=-5s), because argparse takes -5s for a flag."""
    joined: list[str] = []
    for word in argv:
        if re.match(r"-\.?\d", word) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _verdict(error: Exception) -> tuple[str, str, int]:
    """Return the sentence for an error, its kind, and the exit code."""
    from feedrate.analysis.run_folder import RunError

    if isinstance(error, NothingFound):
        return str(error), "nothing-found", NOTHING_FOUND
    if isinstance(error, WorkloadFailed):
        return str(error), "workload-failed", NOTHING_FOUND
    if isinstance(error, (UsageError, RunError)):
        return str(error), "usage", USAGE
    sentence = f"unexpected {type(error).__name__}: {error}. This is a defect of feedrate; --debug shows where"
    return sentence, "defect", NOTHING_FOUND


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="feedrate",
        description="Finds the PyTorch DataLoader settings that keep an accelerator fed, by training your real model on your real data.",
        epilog="Exit codes: 0 done, 1 failed (the message says why), 2 wrong usage, 130 interrupted (129 by SIGHUP, 143 by SIGTERM).",
    )
    parser.add_argument("--version", action="version", version=f"feedrate {version('feedrate')}")
    commands: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        text = (command.__doc__ or "").strip()
        child = commands.add_parser(
            type(command).__name__.lower(),
            help=text.splitlines()[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # arguments.without removes flags from command lines by their full names
        )
        child.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.prepare(child)
        child.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
