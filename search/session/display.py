"""What a search shows while it runs: a live panel on a terminal, plain lines elsewhere. Neither Ray nor Optuna."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from feedrate.analysis.disqualified import NOTHING, Disqualified
from feedrate.analysis.estimate import Rate, wait_fraction
from feedrate.analysis.schema import status
from feedrate.analysis.verdict import changing
from feedrate.search.session.budget import Budget
from feedrate.search.session.search_end import WORTH_FRACTION
from feedrate.trainables.config import LoaderConfig


def _spread(rate: Rate) -> str:
    half = rate.half_width_fraction
    return f"±{half:.0%}" if half < 1 else "±100 % or more"


def _changing(record: Mapping[str, Any], change_fraction: float | None) -> str:
    """How a rate had not stopped changing, and after how long; empty where it had, or too little was measured to say."""
    if not change_fraction:
        return ""
    spent = [record.get(name) or 0.0 for name in ("iter_s", "first_batch_s", "settle_s")]
    spent += [*(record.get("window_duration_s") or ()), *(record.get("epoch_duration_s") or ())]
    return f"  {changing(change_fraction)} after {sum(spent):.0f} s"


def _minutes(seconds: int) -> str:
    return f"{seconds // 60}:{seconds % 60:02d}"


class Display:
    """Told what happens in a search; draws it.

    Args:
        console: where to draw; a terminal gets a live panel, anything else a line an event.
        time_budget_s: for the time left.
        max_trials: for how many are left; None where time alone is the limit.
        disqualified: settings that repeat data and are not the best so far.
        quiet: draw nothing.
        clock: seconds; tests pass their own.
    """

    def __init__(
        self,
        console: Console,
        *,
        time_budget_s: float,
        max_trials: int | None = None,
        disqualified: Disqualified = NOTHING,
        unit: str = "samples",
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.names_hosts = False
        """Name the host of each failure: a search on a cluster."""
        self.console, self.time_budget_s, self.unit, self.quiet, self.clock = console, time_budget_s, unit, quiet, clock
        self.begun = clock()
        self.max_trials, self.disqualified = max_trials, disqualified
        self.counts = {"complete": 0, "pruned": 0, "failed": 0}
        self._no_ceiling: set[int | None] = set()
        self._noted: set[str] = set()
        self.best: tuple[LoaderConfig, Rate] | None = None
        self.now = ""
        self.to_gain = ""
        self._soonest_end: float | None = None
        self._waits_since = self.begun
        self._live: Live | None = None
        self.budget: Budget | None = None
        """The session's, whose clock stands still while it waits."""

    def begin(self) -> None:
        """The search begins: start the clock and, on a terminal, the panel."""
        self.begun = self.clock()
        if self.console.is_terminal and not self.quiet:
            self._live = Live(self._panel(), console=self.console, auto_refresh=False, transient=True)
            self._live.start(refresh=True)

    def end(self) -> None:
        """Take the panel away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(f"[{self._elapsed()}] {text}", markup=False, highlight=False, soft_wrap=True)

    def note_once(self, text: str) -> None:
        """A note that holds for the whole search, whichever trial it is known from."""
        if text not in self._noted:
            self._noted.add(text)
            self.say(f"note: {text}")

    def tick(self) -> None:
        """Redraw the panel; called a few times a second."""
        if self._live is not None:
            self._live.update(self._panel(), refresh=True)

    def started(self, number: int, config: LoaderConfig, origin: str) -> None:
        """A trial was asked for."""
        self.now = f"measuring {config.short()}" + (f" ({origin})" if origin != "sampler" else "")
        self.tick()

    def ahead(self, seconds: float | None, gain_fraction: float | None) -> None:
        """What is to be expected: the time that is needed even if no further setting is better, and what one may gain."""
        self._soonest_end = None if seconds is None else self.clock() + seconds
        self.to_gain = "" if gain_fraction is None else f"another setting is expected to gain {gain_fraction:.1%} (the search ends below {WORTH_FRACTION:.0%})"

    def confirming(self, configs: Sequence[LoaderConfig]) -> None:
        """The settings were tried; the best of them are measured again in rounds."""
        self.say(f"confirming in interleaved rounds: {', '.join(config.short() for config in configs)}")

    def round_started(self, number: int, num_settings: int) -> None:
        """A round was asked for."""
        self.now = f"confirming, round {number} ({num_settings} settings)"
        self.tick()

    def in_round(self, record: dict[str, Any], rate: Rate | None, change_fraction: float | None = None) -> None:
        """One setting of a round was measured and its record is on disk; see `finished`."""
        config = LoaderConfig.from_dict(record).short()
        if rate is None:
            self.say(f"round {record['round']}: {config}  {self._failed(record)}")
        else:
            self.say(f"round {record['round']}: {config}  {rate.sps:,.0f} {self.unit}/s{_changing(record, change_fraction)}")
        self.tick()

    def waiting(self, why: str) -> None:
        """A trial waits for its turn on a host; the time budget waits too where all do."""
        text = f"waiting: {why}"
        if self.now != text:
            self.now = text
            self._waits_since = self.clock()
            self.say(text)

    def proceeds(self, what: str) -> None:
        """Say that the wait is over, and how long it was; nothing where nobody was told to wait."""
        if self.now.startswith("waiting: "):
            self.say(f"{what} after {_minutes(int(self.clock() - self._waits_since))}")
            self.now = ""

    def ceiling(self, batch_size: int | None, sps: float | None, baseline: Rate | None, why_not: str | None = None) -> None:
        """The step alone was timed.

        Args:
            batch_size: at which it was.
            sps: the ceiling, never below a measured rate; None where it is not known.
            baseline: the baseline's rate at that size, for how much there is to gain; None says nothing of that.
            why_not: why it is not known.
        """
        where = "" if batch_size is None else f" at b{batch_size}"
        if sps is None:
            if batch_size in self._no_ceiling:
                return
            self._no_ceiling.add(batch_size)
            self.say(f"ceiling{where} (no loading): not known, because {why_not}")
            return
        self._no_ceiling.discard(batch_size)
        gain = "" if baseline is None else f"  at most {max(sps / baseline.sps, 1):.2f}x to gain"
        self.say(f"ceiling{where} (no loading): {sps:,.0f} {self.unit}/s{gain}")

    def learn(self, record: dict[str, Any], rate: Rate | None) -> None:
        """Count a trial, also one of an earlier driver; what a round measures again is not counted twice."""
        if record["kind"] != "search" or record.get("retried"):
            return
        outcome = status(record)
        self.counts[outcome] += 1
        if not self.disqualified.allows(record["num_workers"], record["persistent_workers"]):
            return
        if rate is not None and outcome == "complete" and (self.best is None or rate.sps > self.best[1].sps):
            self.best = (LoaderConfig.from_dict(record), rate)

    def finished(self, record: dict[str, Any], rate: Rate | None, change_fraction: float | None = None) -> None:
        """A trial ended and its record is on disk.

        Args:
            record: as it was written.
            rate: None where the trial has none.
            change_fraction: by how much the rate was still changing (estimate.record_change).
        """
        self.learn(record, rate)
        self.say(self._line(record, LoaderConfig.from_dict(record), rate, status(record)) + _changing(record, change_fraction))
        self.tick()

    def _line(self, record: dict[str, Any], config: LoaderConfig, rate: Rate | None, outcome: str) -> str:
        name = "yours" if record["origin"] == "baseline" else f"trial {record['number']}"
        if outcome == "failed" or rate is None:
            return f"{name}: {config.short()}  {self._failed(record)}"
        waits = wait_fraction(record)
        words = f"{name}: {config.short()}  {rate.sps:,.0f} {self.unit}/s {_spread(rate)}"
        words += "  stopped early" if outcome == "pruned" else ""
        if record["origin"] == "baseline":
            words += f"  waits for data {waits:.0%} of the time"
        elif self.best is not None:
            words += f"  (best {self.best[0].short()} {self.best[1].sps:,.0f})"
        return words

    def _failed(self, record: dict[str, Any]) -> str:
        """What is said of a failure: where, why, and whether another host tries the setting."""
        where = f" on {record['hostname']}" if self.names_hosts and record.get("hostname") else ""
        again = "; retrying on another host" if record.get("retried") else ""
        return f"failed{where}: {record.get('failure_message')}{again}"

    def _elapsed(self) -> str:
        return _minutes(int(self.clock() - self.begun))

    def _left(self, at_most: int) -> str:
        if self._soonest_end is None:
            return _minutes(at_most)
        soonest = min(int(max(self._soonest_end - self.clock(), 0.0)), at_most)
        return f"about {_minutes(soonest)} if nothing better is found, {_minutes(at_most)} at most"

    def _panel(self) -> Table:
        spent = self.clock() - self.begun - (self.budget.stood_s if self.budget is not None else 0.0)
        left = int(max(self.time_budget_s - spent, 0.0))
        done = sum(self.counts.values())
        of = "" if self.max_trials is None else f" of {self.max_trials}"
        best = "none yet"
        if self.best is not None:
            best = f"{escape(self.best[0].short())}  {self.best[1].sps:,.0f} {escape(self.unit)}/s"
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_row("settings", f"{done}{of} tried, {self.counts['pruned']} stopped early, {self.counts['failed']} failed")
        table.add_row("best so far", best)
        table.add_row("now", escape(self.now))
        if self.to_gain:
            table.add_row("to gain", self.to_gain)
        table.add_row("time left", self._left(left) if left else "over, the last trial is ending")
        table.add_row("", ProgressBar(total=self.time_budget_s, completed=min(spent, self.time_budget_s), width=40))
        return table
