"""The display of a search that runs as a Ray Job: it also writes lines for programs into the log, with the progress of the search.

While a driver runs, the Jobs API shows only its log. A line for programs is a mark and one JSON object. `feedrate status`
reads the last one, and `feedrate logs` leaves them out.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from feedrate.analysis.estimate import Rate
from feedrate.search.session.display import Display
from feedrate.trainables.config import LoaderConfig

VARIABLE = "FEEDRATE_JOB"
"""Environment variable of the jobs that `feedrate submit` makes. If it is set, a search uses `JobDisplay`."""
MARK = "feedrate-progress"
_LINE = re.compile(rf"^(?:\[(?P<hardware>[^\]\n]+)\] )?{MARK} (?P<object>\{{.*\}})$")


class JobDisplay(Display):
    """A `Display` that also writes lines for programs.

    Args:
        given, named: the arguments of `Display`.
        run: the run folder.
    """

    def __init__(self, *given: Any, run: str, **named: Any) -> None:
        super().__init__(*given, **named)
        self.run = run
        self.round: int | None = None
        self.is_answer = False

    def begin(self) -> None:
        """Start the clock, and write the first line for programs."""
        super().begin()
        self._tell()

    def finished(self, record: dict[str, Any], rate: Rate | None, change_fraction: float | None = None) -> None:
        """Show a trial that has ended, and write the progress."""
        super().finished(record, rate, change_fraction)
        self._tell()

    def confirming(self, configs: Sequence[LoaderConfig]) -> None:
        """Show which settings are measured again in rounds, and write the progress."""
        super().confirming(configs)
        self.round = 0
        self._tell()

    def in_round(self, record: dict[str, Any], rate: Rate | None, change_fraction: float | None = None) -> None:
        """Show one measurement of a round, and write the progress."""
        super().in_round(record, rate, change_fraction)
        self.round = record["round"]
        self._tell()

    def answered(self, best: Mapping[str, Any] | None) -> None:
        """Write the last line for programs, in which the best setting is the answer."""
        if best is not None:
            rate = best["throughput"]
            config = LoaderConfig.from_dict(best["process"] | best["dataloader"])
            self.best = (config, Rate(sps=rate["samples_per_second"], low_sps=rate["ci95"][0], high_sps=rate["ci95"][1]))
            self.is_answer = True
        self._tell()

    def _tell(self) -> None:
        best = None
        if self.best is not None:
            config, rate = self.best
            best = {
                "config": config.short(),
                "dataloader": config.to_kwargs(),
                "samples_per_second": rate.sps,
                "ci95": [rate.low_sps, rate.high_sps],
                "is_answer": self.is_answer,
            }
        facts = {
            "run": self.run,
            "num_complete": self.counts["complete"],
            "num_pruned": self.counts["pruned"],
            "num_failed": self.counts["failed"],
            "max_trials": self.max_trials,
            "elapsed_s": self.clock() - self.begun,
            "time_budget_s": self.time_budget_s,
            "round": self.round,
            "unit": self.unit,
            "best": best,
        }
        print(f"{MARK} {json.dumps(facts)}", file=sys.stderr, flush=True)


def make_display(run: Path, *given: Any, **named: Any) -> Display:
    """Return the display for a search into this folder: a `JobDisplay` in a job. The other arguments are those of `Display`."""
    return JobDisplay(*given, run=str(run.absolute()), **named) if VARIABLE in os.environ else Display(*given, **named)


def split_log(log: str) -> tuple[str, dict[str | None, dict[str, Any]]]:
    """Split a job's log into the lines for people and the latest progress of each search in it.

    Args:
        log: the log of a job; it may begin or end in the middle of a line.

    Returns:
        The log without the lines for programs, and hardware class -> facts; the class is None if the job has only one search.
    """
    facts: dict[str | None, dict[str, Any]] = {}
    lines = []
    for line in _lines(log):
        match = _LINE.match(line.rstrip("\n"))
        if match is None:
            lines.append(line)
            continue
        try:
            facts[match["hardware"]] = json.loads(match["object"])
        except ValueError:
            lines.append(line)
    return "".join(lines), facts


def _lines(text: str) -> Iterator[str]:
    """Return the lines of a text with their newlines; only a newline ends a line, unlike in `str.splitlines`."""
    return (line for line in re.split(r"(?<=\n)", text) if line)
