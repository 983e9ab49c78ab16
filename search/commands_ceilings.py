"""`feedrate ceilings`: the training step and the loader each alone, both together, and which of them is the limit."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from feedrate.search import commands_trial
from feedrate.search.machine_output import answer
from feedrate.search.options import counted_anyway

Columns = dict[str, Any]


class Ceilings:
    """How fast the training step and the loader are each alone, and which of them is the limit. Without Ray.

    feedrate ceilings train.py:workload

    The loader is timed with what it reads in the page cache, and where that can be done without it, once more with
    every file dropped from the cache before it is read. Each line is printed as soon as it is known.
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        commands_trial._add_arguments(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        from feedrate.trainables.supervise import Template

        config = commands_trial._setting(args)
        lines = _Lines(quiet=args.json, setting=config.short(), num_workers=config.num_workers)
        template = Template(commands_trial._ref(args), threads=args.threads, show_output=True)
        with contextlib.closing(template):

            def trial(on_columns: Callable[[Columns], None], **more: Any) -> tuple[Columns, Columns | None]:
                return commands_trial._trial(args, config, {"objective": "steady", **more}, on_columns, template)

            together, failure = trial(lines.step)
            if failure is None:
                lines.step(together)
                lines.together(together)
                warm, failure = trial(lambda columns: None, loader_only=True)
            if failure is not None:
                return commands_trial._print_failure(args.json, config, failure)
            lines.warm(warm)
            cold, failure = trial(lambda columns: None, loader_only=True, cold=True)
            lines.cold(cold, failure)
        facts = lines.facts | {"dataloader": config.to_kwargs(), "process": config.to_process(args.threads)}
        if args.json:
            answer("ceilings", facts)
        lines.last()
        return None


class _Lines:
    """What is known so far, as lines for people and as one object for programs."""

    def __init__(self, *, quiet: bool, setting: str, num_workers: int) -> None:
        self.quiet, self.setting, self.num_workers = quiet, setting, num_workers
        self.facts: dict[str, Any] = {}

    def step(self, columns: Columns) -> None:
        """The step alone: the first thing that is known, long before the whole trial is over."""
        from feedrate.analysis.estimate import copy_only_sps, step_only_sps

        if "step_only_sps" in self.facts:
            return
        step, copy = step_only_sps(columns), copy_only_sps(columns)
        self.facts |= {"unit": columns["unit"], "step_only_sps": step, "copy_only_sps": copy}
        self._rate("step alone", step, "on a batch that is on the device already")
        if step is None:
            self._say("step alone: not known, as it trained no item of the batch that was read for it")
        if columns.get("step_returned") is not None:
            self._say(f"note: {counted_anyway(columns['step_returned'])}")
        if copy is not None:
            self._rate("copy alone", copy, f"of a batch to {columns['device']}")

    def together(self, columns: Columns) -> None:
        """Training as it is, and what that says."""
        from feedrate.analysis.verdict import judge, record_facts

        found = record_facts(columns)
        sps, step = found["steady_sps"], self.facts["step_only_sps"]
        verdict = judge(found | {"num_workers": self.num_workers})  # a trial's columns do not hold its setting
        self.facts |= {
            "together_sps": sps,
            "data_stall_fraction": None if step is None else max(1 - sps / step, 0.0),
            "max_gain": None if step is None else max(step / sps, 1.0),
            "verdict": verdict.name,
            "verdict_evidence": list(verdict.evidence),
        }
        self._rate("both together", sps, f"with {self.setting}")

    def warm(self, columns: Columns) -> None:
        """The loader alone, and how much it and the step get into each other's way."""
        from feedrate.analysis.estimate import record_steady
        from feedrate.analysis.verdict import alternating_sps

        rate = record_steady(columns)
        assert rate is not None
        state, step = columns["cache_state"], self.facts["step_only_sps"]
        # without workers they take turns; with workers the slower one sets the pace
        expected = None
        if step is not None:
            expected = min(step, rate.sps) if self.num_workers else alternating_sps(step, rate.sps)
        self.facts |= {
            "loader_only_sps": rate.sps,
            "cache_state": state,
            "interference_fraction": None if expected is None else max(1 - self.facts["together_sps"] / expected, 0.0),
        }
        told = {"warm": "page cache warm", "mixed": "page cache mixed: a part came from storage"}
        self._rate("loader alone", rate.sps, told.get(state, "page cache not known"))

    def cold(self, columns: Columns, failure: Columns | None) -> None:
        """The loader alone from storage, or why that is not known."""
        from feedrate.analysis.estimate import record_steady

        self.facts |= {"loader_only_cold_sps": None, "fetch_fraction": None, "cold_refused": None}
        rate = None if failure is not None else record_steady(columns)
        if failure is not None:
            self.facts["cold_refused"] = failure["failure_message"]
        elif columns.get("cold_refused"):
            self.facts["cold_refused"] = columns["cold_refused"]
        elif columns.get("cache_state") == "mixed":
            self.facts["cold_refused"] = "only a part of what was read came from storage"
        elif rate is None or columns.get("cache_state") != "cold":
            self.facts["cold_refused"] = "nothing came from storage that this machine's kernel counts"
        if rate is None or self.facts["cold_refused"]:
            self._say(f"no rate from a cold page cache: {self.facts['cold_refused']}")
            return
        fetching = max(1 - rate.sps / self.facts["loader_only_sps"], 0.0)
        self.facts |= {"loader_only_cold_sps": rate.sps, "fetch_fraction": fetching}
        shares = f"fetching takes {fetching:.0%} of the time, preparing {1 - fetching:.0%}"
        self._rate("loader alone", rate.sps, f"page cache cold: {shares}")

    def last(self) -> None:
        """What it comes to."""
        from feedrate.analysis.verdict import NOISY

        facts = self.facts
        if facts["verdict"] == NOISY:
            self._say(f"{facts['verdict']}: {'; '.join(facts['verdict_evidence'])}; measure again on a quiet machine")
            return
        if facts["data_stall_fraction"] is None:
            self._say(f"{facts['verdict']}: {'; '.join(facts['verdict_evidence'])}")
            return
        how = "the slower of step and loader" if self.num_workers else "step and loader taking turns"
        self._say(
            f"data stall {facts['data_stall_fraction']:.0%} (1 - both together / step alone), interference "
            f"{facts['interference_fraction']:.0%} (below {how})"
        )
        self._say(f"{facts['verdict']}: {'; '.join(facts['verdict_evidence'])}")
        self._say(f"at most {facts['max_gain']:.2f}x to gain")

    def _rate(self, name: str, sps: float | None, note: str) -> None:
        if sps is not None:
            self._say(f"{name:13} {sps:12,.1f} {self.facts['unit']}/s  {note}")

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)
