"""What a search shows while it runs: a live panel on a terminal, plain lines elsewhere. Imports neither Ray nor Optuna."""

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
    """Return how a rate was still changing and after how long; empty if it had stopped changing, or if too little was measured to say."""
    if not change_fraction:
        return ""
    spent = [record.get(name) or 0.0 for name in ("iter_s", "first_batch_s", "settle_s")]
    spent += [*(record.get("window_duration_s") or ()), *(record.get("epoch_duration_s") or ())]
    return f"  {changing(change_fraction)} after {sum(spent):.0f} s"


def _minutes(seconds: int) -> str:
    return f"{seconds // 60}:{seconds % 60:02d}"


class Display:
    """The display of one search. The session calls its methods, one per event.

    Args:
        console: where to draw; a terminal gets a live panel, anything else one line per event.
        time_budget_s: the search's time budget, from which the time left is shown.
        max_trials: largest number of settings, to show how many are left; None if time is the only limit.
        disqualified: settings that repeat data, which are never shown as the best so far.
        unit: name of the items that a rate counts.
        quiet: draw nothing.
        clock: returns seconds; tests pass their own.
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
        """Whether to name the host of each failure; true for a search on a cluster."""
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
        """The session's budget, whose clock stands still while every trial waits; None without a session."""

    def begin(self) -> None:
        """Start the clock and, on a terminal, the panel."""
        self.begun = self.clock()
        if self.console.is_terminal and not self.quiet:
            self._live = Live(self._panel(), console=self.console, auto_refresh=False, transient=True)
            self._live.start(refresh=True)

    def end(self) -> None:
        """Remove the panel."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def answered(self, best: Mapping[str, Any] | None) -> None:
        """Learn the search's answer (best.json; None if nothing worked). Nothing is drawn, because the answer is printed elsewhere."""

    def say(self, text: str) -> None:
        """Print a line with the elapsed time."""
        if not self.quiet:
            self.console.print(f"[{self._elapsed()}] {text}", markup=False, highlight=False, soft_wrap=True)

    def note_once(self, text: str) -> None:
        """Print a note that holds for the whole search; several trials may report it, but it is printed once."""
        if text not in self._noted:
            self._noted.add(text)
            self.say(f"note: {text}")

    def tick(self) -> None:
        """Redraw the panel. Called a few times per second."""
        if self._live is not None:
            self._live.update(self._panel(), refresh=True)

    def started(self, number: int, config: LoaderConfig, origin: str) -> None:
        """Show that a trial has been asked for."""
        self.now = f"measuring {config.short()}" + (f" ({origin})" if origin != "sampler" else "")
        self.tick()

    def ahead(self, seconds: float | None, gain_fraction: float | None) -> None:
        """Show what to expect: the seconds needed even if no further setting is better, and the expected gain of another setting."""
        self._soonest_end = None if seconds is None else self.clock() + seconds
        self.to_gain = "" if gain_fraction is None else f"another setting is expected to gain {gain_fraction:.1%} (the search ends below {WORTH_FRACTION:.0%})"

    def confirming(self, configs: Sequence[LoaderConfig]) -> None:
        """Show that all settings have been tried, and which of them are measured again in rounds."""
        self.say(f"confirming in interleaved rounds: {', '.join(config.short() for config in configs)}")

    def round_started(self, number: int, num_settings: int) -> None:
        """Show that a round has been asked for."""
        self.now = f"confirming, round {number} ({num_settings} settings)"
        self.tick()

    def in_round(self, record: dict[str, Any], rate: Rate | None, change_fraction: float | None = None) -> None:
        """Show one measurement of a round, whose record is on disk. Arguments as for `finished`."""
        config = LoaderConfig.from_dict(record).short()
        if rate is None:
            self.say(f"round {record['round']}: {config}  {self._failed(record)}")
        else:
            self.say(f"round {record['round']}: {config}  {rate.sps:,.0f} {self.unit}/s{_changing(record, change_fraction)}")
        self.tick()

    def waiting(self, why: str, hostname: str | None = None) -> None:
        """Show that a trial waits for its turn on a host, and why. If all trials wait, the time budget waits too."""
        text = f"waiting on {hostname}: {why}" if self.names_hosts and hostname is not None else f"waiting: {why}"
        if self.now != text:
            self.now = text
            self._waits_since = self.clock()
            self.say(text)

    def proceeds(self, what: str) -> None:
        """Show that the wait is over, and how long it was; do nothing if no wait was shown."""
        if self.now.startswith("waiting"):
            self.say(f"{what} after {_minutes(int(self.clock() - self._waits_since))}")
            self.now = ""

    def ceiling(self, batch_size: int | None, sps: float | None, baseline: Rate | None, why_not: str | None = None) -> None:
        """Show the ceiling: the rate of the training step without loading.

        Args:
            batch_size: the batch size at which the step was timed.
            sps: the ceiling, never below a measured rate; None if it is not known.
            baseline: the baseline's rate at that size, to show how much there is to gain; None shows no gain.
            why_not: why the ceiling is not known.
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
        """Count a trial, also one from before a resume. Not counted are measurements in confirmation rounds, and failed trials that another host repeats."""
        if record["kind"] != "search" or record.get("retried"):
            return
        outcome = status(record)
        self.counts[outcome] += 1
        if not self.disqualified.allows(record["num_workers"], record["persistent_workers"]):
            return
        if rate is not None and outcome == "complete" and (self.best is None or rate.sps > self.best[1].sps):
            self.best = (LoaderConfig.from_dict(record), rate)

    def finished(self, record: dict[str, Any], rate: Rate | None, change_fraction: float | None = None) -> None:
        """Show a trial that has ended and whose record is on disk.

        Args:
            record: the record as it was written.
            rate: the trial's rate; None if it has none.
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
        """Return the words for a failure: on which host, why, and whether another host tries the setting."""
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
