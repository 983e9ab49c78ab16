"""`feedrate verify`: measure an earlier answer again on this machine, without Ray."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from feedrate.search.cli import measure
from feedrate.search.options import UsageError
from feedrate.search.terminal import arguments
from feedrate.search.terminal.machine_output import answer

if TYPE_CHECKING:
    from feedrate.analysis.rounds import Round
    from feedrate.trainables.config import LoaderConfig
    from feedrate.trainables.failure import Failure

DOES_NOT_HOLD = 1
NOT_MEASURED: dict[str, Any] = dict.fromkeys(
    ("num_rounds", "throughput", "recorded_samples_per_second", "most_foreign_cpu_fraction", "speedup", "speedup_ci95")
)


class Verify:
    """Measure a best.json again for a minute: does it still hold here, with this torch, machine and data?

    feedrate verify best.json train.py:workload
    feedrate verify feedrate-runs/images-1 images --time-budget 2m

    Its setting and its baseline are measured in turn, each in a fresh process. Exit code 0 if the answer still holds,
    1 if it does not or if it fails here.
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("best", metavar="FILE", help="best.json, or the run folder that contains it")
        arguments.add_workload(parser)
        parser.add_argument(
            "--time-budget", dest="time_budget_s", type=arguments.duration_s, default=60.0, metavar="TIME",
            help="time for the rounds; at least three are made (default 1m)",
        )  # fmt: skip
        parser.add_argument("--max-trial-s", type=arguments.whole(1), default=5, metavar="S", help="time limit in seconds for one measurement (default 5)")
        parser.add_argument("--seed", type=arguments.whole(0), default=0, metavar="N")
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        from feedrate.analysis.best import load_best
        from feedrate.analysis.rounds import DISTURBED_FRACTION
        from feedrate.search.session.verification import differences, verified

        best = load_best(args.best)
        searched = best.raw.get("search") or {}
        args.objective, args.epoch_samples = searched.get("objective", "epoch"), best.workload.get("epoch_samples")
        args.amp, args.compile = searched.get("amp"), searched.get("compile", False)
        args.threads = best.process.get("torch_num_threads")
        here = _here(args)
        was = best.workload.get("name")
        if was is not None and was != here["workload"]:
            given = args.workload or shlex.join(args.script)
            raise UsageError(f"{args.best} is the answer for the workload {was!r}, and {given} is {here['workload']!r}: name the same workload")
        scope = best.raw["scope"]
        if (num_hosts := scope.get("world_size", 1) // scope.get("ranks_per_host", 1)) > 1:
            raise UsageError(f"{args.best} is the answer for ranks on {num_hosts} hosts, and verify measures on this host only: search again with --warm-start instead")
        if (ranks := scope.get("world_size", 1)) != here["num_ranks"]:
            raise UsageError(
                f"{args.best} is the answer for {ranks} rank{'s' * (ranks != 1)}, and this command trains in {here['num_ranks']}: start as many ranks as in the "
                "search, or search again"
            )
        differs = differences(best, here)
        say = _say if args.json else print
        for difference in differs:
            say(f"differs: {difference}")
        rounds, most, failure = _rounds(args, best)
        if failure is not None:
            text = f"the answer does not work here: {failure.message}"
            if args.json:
                answer("verify", NOT_MEASURED | {"holds": False, "sentence": text, "differences": differs})
            else:
                print(text)
            return DOES_NOT_HOLD
        found = verified(best, rounds)
        assert found is not None  # _rounds measures MIN_ROUNDS rounds of both in any case
        recorded = best.throughput["samples_per_second"]
        if args.json:
            body: dict[str, Any] = NOT_MEASURED | {"holds": found.holds, "sentence": found.sentence, "differences": differs, "num_rounds": len(rounds)}
            body["throughput"] = {"samples_per_second": found.throughput.sps, "ci95": [found.throughput.low_sps, found.throughput.high_sps]}
            body |= {"recorded_samples_per_second": recorded, "most_foreign_cpu_fraction": most}
            if found.speedup is not None:
                body |= {"speedup": found.speedup.sps, "speedup_ci95": [found.speedup.low_sps, found.speedup.high_sps]}
            answer("verify", body)
        else:
            rate = found.throughput
            unit = best.throughput.get("unit", "samples")
            print(f"{rate.sps:,.0f} {unit}/s here [{rate.low_sps:,.0f}-{rate.high_sps:,.0f}], {recorded:,.0f} in the search")
            if most >= DISTURBED_FRACTION:
                print(f"note: other processes used up to {most:.0%} of the CPU time during the measurement; the rates would differ on a quiet machine")
            print(f"{found.sentence[0].upper()}{found.sentence[1:]}.")
        return None if found.holds else DOES_NOT_HOLD


def _rounds(args: argparse.Namespace, best: Any) -> tuple[list[Round], float, Failure | None]:
    """Measure rounds of the setting and its baseline until the time is over.

    Returns:
        The rounds, the largest share of the CPUs that other processes used, and the failure of a measurement, or None.
    """
    from feedrate.analysis.rounds import MIN_ROUNDS, rounds_of
    from feedrate.search.session.verification import baseline_of, setting_of

    configs = list(dict.fromkeys([setting_of(best), baseline_of(best)]))
    begun, number, measured = time.monotonic(), 0, []
    template = measure._template(args)
    try:
        while number < MIN_ROUNDS or (time.monotonic() - begun) * (number + 1) / number <= args.time_budget_s:
            number += 1
            for config in configs if number % 2 else configs[::-1]:  # alternate the order (ABBA), so that a drift affects both alike
                args.seed += 1
                columns, failure = measure._trial(args, config, {"measure_step": False}, template=template)
                if failure is not None:
                    return [], 0.0, replace(failure, message=f"{config.short()}: {failure.message}")
                measured.append(_measured(args, config, columns, number))
    finally:
        template.close()
    return rounds_of(measured), max(record.get("foreign_cpu_fraction") or 0.0 for _, _, record in measured), None


def _measured(args: argparse.Namespace, config: LoaderConfig, columns: dict[str, Any], number: int) -> tuple[str, float, dict[str, Any]]:
    from feedrate.analysis.estimate import record_change, record_rate
    from feedrate.analysis.verdict import changing

    rate, change = record_rate(columns, args.objective), record_change(columns, args.objective)
    assert rate is not None
    if not args.json:
        note = f"  {changing(change)}: raise --max-trial-s" if change else ""
        print(f"round {number}: {config.short()}  {rate.sps:,.0f} {columns['unit']}/s{note}", flush=True)
    return config.short(), rate.sps, columns | {"kind": "confirm", "round": number}


def _here(args: argparse.Namespace) -> dict[str, Any]:
    """Return facts about this machine and this workload, with the names that best.json has."""
    import socket

    from feedrate.search.setup.prepare import describe_workload
    from feedrate.search.setup.request import versions
    from feedrate.trainables.machine.host import cpu_model

    described = describe_workload(measure._ref(args))
    if not described.is_short and (args.amp or args.compile):
        raise UsageError("the answer was measured with --amp or --compile, which have no effect on a workload that builds its own step")
    return {
        "workload": described.name,
        "hostname": socket.gethostname(),
        "cpu_model": cpu_model(),
        "num_ranks": described.num_ranks,
        "num_cpus": described.facts.num_cpus,
        "device_name": described.facts.device_name,
        "versions": versions(described),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
