"""`feedrate ceilings`: the rates of the training step alone, of the loader alone and of both together, and which of them is the limit."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from feedrate.search.cli import measure
from feedrate.search.options import counted_anyway
from feedrate.search.terminal.machine_output import answer

if TYPE_CHECKING:
    from feedrate.trainables.failure import Failure

Columns = dict[str, Any]


class Ceilings:
    """Measure how fast the training step and the loader each are alone, and which of them is the limit. Without Ray.

    feedrate ceilings train.py:workload

    The loader is timed with its files in the page cache and, if possible, once more with every file dropped from the
    cache before it is read. Each line is printed as soon as it is known. The rate of the step alone counts only if it is
    not below the rate of training with loading.
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        measure._add_arguments(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        with contextlib.closing(measure._template(args)) as template:
            config = measure._setting(args, template)
            lines = _Lines(quiet=args.json, setting=config.short(), num_workers=config.num_workers)

            def trial(**more: Any) -> tuple[Columns, Failure | None]:
                return measure._trial(args, config, {"objective": "steady", **more}, template)

            together, failure = trial()
            if failure is None:
                lines.together(together)
                warm, failure = trial(loader_only=True)
            if failure is not None:
                return measure._print_failure(args.json, config, failure)
            lines.warm(warm)
            cold, failure = trial(loader_only=True, cold=True)
            lines.cold(cold, failure)
        facts = lines.facts | {"dataloader": config.to_kwargs(), "process": config.to_process(args.threads)}
        if args.json:
            answer("ceilings", facts)
        lines.last()
        return None


class _Lines:
    """The results so far, printed as lines for people and collected as one object for programs."""

    def __init__(self, *, quiet: bool, setting: str, num_workers: int) -> None:
        self.quiet, self.setting, self.num_workers = quiet, setting, num_workers
        self.facts: dict[str, Any] = {}
        self.advice = ""
        """How to measure more precisely; empty if the results are precise enough."""

    def together(self, columns: Columns) -> None:
        """Report the rates of the step alone and of training with loading; a ceiling counts only if training does not exceed it."""
        from feedrate.analysis.ceilings import NOT_TIMED, UNREAD
        from feedrate.analysis.ceilings import Ceilings as Known
        from feedrate.analysis.estimate import copy_only_sps
        from feedrate.analysis.verdict import changing, judge, record_facts

        found, known = record_facts(columns), Known()
        known.learn_record(columns)
        size, sps = columns.get("batch_size"), found["steady_sps"]
        step = known.at(size)
        verdict = judge(found | {"num_workers": self.num_workers}, step, known.why_not(size))  # columns do not contain the setting
        is_changing = bool(found["change_fraction"])
        gain = None if step is None or is_changing else max(step / sps, 1.0)
        if is_changing:
            self.advice = "measure longer: raise --max-trial-s"
        elif step is None and known.why_not(size) not in (NOT_TIMED, UNREAD):
            self.advice = "measure again on a quiet machine"
        self.facts |= {
            "unit": columns["unit"],
            "step_only_sps": step,
            "copy_only_sps": copy_only_sps(columns),
            "together_sps": sps,
            "still_changing": is_changing,
            "data_stall_fraction": None if gain is None else 1 - 1 / gain,
            "max_gain": gain,
            "verdict": verdict.name,
            "verdict_evidence": list(verdict.evidence),
        }
        if step is None:
            self._say(f"step alone    not known, because {known.why_not(size)}")
        self._rate("step alone", step, "on a batch that is on the device already")
        self._rate("copy alone", self.facts["copy_only_sps"], f"of a batch to {columns['device']}")
        if columns.get("step_returned") is not None:
            self._say(f"note: {counted_anyway(columns['step_returned'])}")
        note = f", {changing(found['change_fraction'])}" if is_changing else ""
        self._rate("both together", sps, f"with {self.setting}{note}")

    def warm(self, columns: Columns) -> None:
        """Report the rate of the loader alone, and how much loader and step slow each other down."""
        from feedrate.analysis.estimate import record_change, record_steady
        from feedrate.analysis.verdict import alternating_sps, changing

        rate, change = record_steady(columns), record_change(columns, "steady")
        assert rate is not None
        state, step = columns["cache_state"], self.facts["step_only_sps"]
        interference = None
        if step is not None and not change and not self.facts["still_changing"]:
            # without workers, loader and step take turns; with workers, the slower of them determines the rate
            expected = min(step, rate.sps) if self.num_workers else alternating_sps(step, rate.sps)
            interference = max(1 - self.facts["together_sps"] / expected, 0.0)
        self.facts |= {"loader_only_sps": rate.sps, "cache_state": state, "interference_fraction": interference}
        told = {"warm": "page cache warm", "mixed": "page cache mixed: some data came from storage"}
        note = f", {changing(change)}" if change else ""
        self._rate("loader alone", rate.sps, told.get(state, "page cache not known") + note)

    def cold(self, columns: Columns, failure: Failure | None) -> None:
        """Report the rate of the loader alone with files read from storage, or why it is not known."""
        from feedrate.analysis.estimate import record_steady

        self.facts |= {"loader_only_cold_sps": None, "fetch_fraction": None, "cold_refused": None}
        rate = None if failure is not None else record_steady(columns)
        if failure is not None:
            self.facts["cold_refused"] = failure.message
        elif columns.get("cold_refused"):
            self.facts["cold_refused"] = columns["cold_refused"]
        elif columns.get("cache_state") == "mixed":
            self.facts["cold_refused"] = "only some of the data came from storage"
        elif rate is None or columns.get("cache_state") != "cold":
            self.facts["cold_refused"] = "this machine's kernel counted no reads from storage"
        if rate is None or self.facts["cold_refused"]:
            self._say(f"no rate from a cold page cache: {self.facts['cold_refused']}")
            return
        fetching = max(1 - rate.sps / self.facts["loader_only_sps"], 0.0)
        self.facts |= {"loader_only_cold_sps": rate.sps, "fetch_fraction": fetching}
        shares = f"fetching takes {fetching:.0%} of the time, preparing {1 - fetching:.0%}"
        self._rate("loader alone", rate.sps, f"page cache cold: {shares}")

    def last(self) -> None:
        """Report the conclusion: data stall, interference, verdict and the possible gain."""
        facts = self.facts
        if facts["interference_fraction"] is not None:
            expected = "the slower of step and loader" if self.num_workers else "step and loader taking turns"
            self._say(
                f"data stall {facts['data_stall_fraction']:.0%} (1 - rate of both together / rate of the step alone), "
                "interference between step and loader "
                f"{facts['interference_fraction']:.0%} (1 - rate of both together / rate of {expected})"
            )
        self._say(f"{facts['verdict']}: {'; '.join(facts['verdict_evidence'])}" + (f"; {self.advice}" if self.advice else ""))
        if facts["max_gain"] is not None:
            self._say(f"at most {facts['max_gain']:.2f}x to gain")

    def _rate(self, name: str, sps: float | None, note: str) -> None:
        if sps is not None:
            self._say(f"{name:13} {sps:12,.1f} {self.facts['unit']}/s  {note}")

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)
