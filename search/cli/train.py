"""`feedrate train`: run a training command to its end, and tune its loader while it trains."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feedrate.analysis.run_folder import RunFolder, read_object
from feedrate.search.options import UsageError, parse_duration_s
from feedrate.search.terminal import arguments
from feedrate.search.terminal.machine_output import answer
from feedrate.trainables.deciding.budget import FRACTION, LEAST_S, MOST_S
from feedrate.trainables.tuning.training_report import TrainingReport

HOOK = Path(__file__).parents[2] / "trainables" / "script" / "hook"
LEFT = ("train.json", "report.html", "live.jsonl", "claim", "best.json", "without-feedrate")
"""The files of a training's run folder."""


class Train:
    """Run a training command to its end, and tune its loader's workers while it trains.

    The samples, their order and the batch size stay what they are; batch_size is never changed. Ranks of one host are tuned together. The command has its own output
    and exit code. The run folder gets live.jsonl (every decision), best.json and report.html.

      feedrate train -- python train.py --data /data --epochs 90
      feedrate train -- torchrun --nproc-per-node 4 train.py
      feedrate train --observe --price-per-hour 2.5 -- python train.py
    """

    takes_only_commands = True

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--observe", action="store_true", help="change nothing; say at the end what waiting cost")
        parser.add_argument(
            "--budget",
            type=arguments.checked(parse_budget),
            default=parse_budget(f"{FRACTION:.0%}"),
            metavar="TIME|N%",
            help="time that may be lost to settings slower than the best one: a duration, or a share of the training (default 2%%, at most 5 minutes)",
        )
        parser.add_argument("--price-per-hour", type=arguments.checked(_price), metavar="PRICE", help="cost of an hour of this machine, to express waiting in money")
        parser.add_argument("--out", metavar="DIR", help="run folder (default: the next free feedrate-runs/NAME-N)")
        parser.add_argument("--force", action="store_true", help="replace an earlier training in the run folder")
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        if not args.script:
            raise UsageError("there is no training command: write it after --, as in feedrate train -- python train.py")
        from feedrate.search.answers.training_answer import name_of
        from feedrate.search.setup.prepare import choose_folder

        name = name_of(args.script)
        folder = choose_folder(args.out, name, args.force)
        if folder.search.exists():
            raise UsageError(f"--out {folder.path} has a search in it: name another folder")
        is_new = not folder.path.exists()
        folder.path.mkdir(parents=True, exist_ok=True)
        for each in LEFT:
            (folder.path / each).unlink(missing_ok=True)
        try:
            code = _run(args, folder.path)
            _finish(args, folder, name, code)
        finally:
            if is_new:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.path.rmdir()
        return code


def parse_budget(text: str) -> dict[str, float]:
    """Return the fields of a `Budget` for a text such as "2%" or "90s".

    Raises:
        ValueError: the text is neither.
    """
    if text.endswith("%"):
        try:
            share = float(text[:-1])
        except ValueError:
            raise ValueError(f"{text!r} is not a share: write 2% or 90s") from None
        if not 0 <= share <= 100:
            raise ValueError(f"{text!r} is not between 0% and 100%")
        return {"fraction": share / 100, "most_s": MOST_S, "least_s": LEAST_S if share else 0.0}
    most_s = parse_duration_s(text)
    return {"fraction": 1.0 if most_s else 0.0, "most_s": most_s, "least_s": min(LEAST_S, most_s)}


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not price > 0:
        raise ValueError(f"must be above 0, not {text}")
    return price


def _run(args: argparse.Namespace, folder: Path) -> int:
    """Run the command with the hook in it, and return its exit code, as a shell would."""
    options = {"folder": str(folder.absolute()), "observe": args.observe, "budget": args.budget}
    paths = [str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "FEEDRATE_TRAIN": json.dumps(options)}
    held: dict[int, Any] = {}
    try:
        with subprocess.Popen(args.script, env=environment) as command:
            # Ctrl-C reaches the command by itself, because it is in the same process group; other signals are passed on
            held[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
            for number in (int(signal.SIGTERM), int(signal.SIGHUP)):
                held[number] = signal.signal(number, lambda signum, frame: command.send_signal(signum))
            status = command.wait()
    except OSError as error:
        raise UsageError(f"the command {args.script[0]!r} cannot be started: {error.strerror}") from None
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


def _finish(args: argparse.Namespace, folder: RunFolder, name: str, code: int) -> None:
    """Write best.json, and say what was found."""
    from feedrate.analysis.best import write_best
    from feedrate.search.answers.training_answer import best_of, closing_lines, cost

    report = None
    with contextlib.suppress(FileNotFoundError):
        report = TrainingReport.from_json(read_object(folder.training))
    for each in (folder.path / "claim", *folder.path.glob("ranks-*")):
        each.unlink(missing_ok=True)
    facts: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    if report is None:
        _say(_why_nothing(folder.path, code))
    else:
        facts, best = cost(report, args.price_per_hour), best_of(report, args.script, name)
        if best is not None:
            write_best(folder.best, best)
        _say(*closing_lines(report, facts, best), f"saved: {folder.best if best is not None else folder.path}")
        _write_page(folder)
    if args.json:
        answer(
            "train",
            {
                "run": folder.path.absolute(),
                "command_exit_code": code,
                "dataloader": None if report is None else report.best,
                "baseline": None if report is None else report.dataloader,
                "confirmed": None if best is None else best["confirmed"],
                "speedup": None if best is None else best["baseline"]["speedup"],
                "speedup_ci95": None if best is None else best["baseline"]["speedup_ci95"],
                "cost": facts,
                "left_alone": None if report is None else report.summary["left_alone"],
            },
        )


def _write_page(folder: RunFolder) -> None:
    """Write the report page. A full disk must not change the exit code of a training."""
    from feedrate.analysis.run_folder import RunError
    from feedrate.analysis.training import load_training
    from feedrate.analysis.training_page import write_training_page

    try:
        write_training_page(load_training(folder.path), folder.report)
    except (RunError, OSError) as error:
        _say(f"there is no report page: {error}")
    else:
        _say(f"report: {folder.report}")


def _why_nothing(folder: Path, code: int) -> str:
    """Return a sentence about a command in which no training was seen."""
    note = folder / "without-feedrate"
    if note.exists():
        python = note.read_text().splitlines()[0]
        return f"nothing was observed: the command's Python cannot load feedrate ({python}). Install feedrate there"
    if code:
        return f"nothing was observed: the command ended with exit code {code} before an optimizer had stepped between two batches of a torch DataLoader"
    return (
        "nothing was observed: no optimizer stepped between two batches of a torch DataLoader that iterates in torch's own way, in a Python "
        "that reads PYTHONPATH"
    )


def _say(*lines: str) -> None:
    for line in lines:
        print(f"feedrate: {line}", file=sys.stderr, flush=True)
