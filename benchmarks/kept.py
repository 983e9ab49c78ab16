"""Does a kept child measure what a fresh one does? Settings in turn, from a fresh child and from one that is kept.

    python benchmarks/kept.py --rounds 6

A child whose set-up takes more than 5 s (here: a model that takes that long to make) keeps its training step for further
settings of the same batch size; loader and workers are new every time. Two settings alternate, so that a kept child has
always measured another one before. Prints the rates' ratio kept / fresh for each setting, medians over the rounds, with
the spread of both sides, and the set-up seconds; exit code 1 when a ratio is outside 0.97 to 1.03.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from hard_workloads import WORKLOADS

from feedrate.trainables import Workload

SETTINGS = ({"num_workers": 2, "batch_size": 16}, {"num_workers": 4, "batch_size": 16, "prefetch_factor": 4})
LOW, HIGH = 0.97, 1.03


def slow_to_set_up() -> Workload:
    """`ragged` of hard_workloads.py, with a model that takes 6 s to make."""
    workload = WORKLOADS["ragged"]()
    make_step = workload.make_step

    def slowly(context: Any) -> Any:
        time.sleep(6)
        return make_step(context)

    return Workload.from_loader(name="slow-to-set-up", make_loader=workload.make_loader, make_step=slowly, unit="tokens")


def main() -> int:
    """Both sides in one run."""
    from feedrate.analysis.estimate import record_steady
    from feedrate.trainables.config import LoaderConfig
    from feedrate.trainables.measuring.measure_options import MeasureOptions
    from feedrate.trainables.protocol import Failed, Measured, MeasureRequest, outcome
    from feedrate.trainables.resolve import make_ref
    from feedrate.trainables.sandbox.template import Template

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    templates = {side: Template(make_ref(f"{Path(__file__).resolve()}:slow_to_set_up"), show_output=True) for side in ("fresh", "kept")}
    rates: dict[tuple[int, str], list[float]] = {}
    setups: dict[str, list[float]] = {"fresh": [], "kept": []}
    for number in range(rounds + 1):  # the first round of the kept side makes its child
        for index, setting in enumerate(SETTINGS):
            for side in ("fresh", "kept") if number % 2 else ("kept", "fresh"):
                options = MeasureOptions(seed=100 * number + index, measure_step=False, objective="steady")
                request = MeasureRequest(config=LoaderConfig(**setting), options=options, keep=side == "kept")
                end = outcome(templates[side].run(request, max_s=20), Measured)
                if isinstance(end, Failed):
                    raise SystemExit(f"a trial failed: {end.failure.message}")
                rate = record_steady(end.columns)
                assert rate is not None
                if number:
                    rates.setdefault((index, side), []).append(rate.sps)
                    setups[side].append(end.columns["setup_s"])
    for template in templates.values():
        template.close()
    good = True
    for index, setting in enumerate(SETTINGS):
        fresh, kept = rates[index, "fresh"], rates[index, "kept"]
        ratio = statistics.median(kept) / statistics.median(fresh)
        good &= LOW <= ratio <= HIGH
        spreads = " ".join(f"{side} {statistics.pstdev(rates[index, side]) / statistics.mean(rates[index, side]):.1%}" for side in ("fresh", "kept"))
        print(f"{LoaderConfig(**setting).short():16} kept / fresh {ratio:.3f}   spread over {rounds} rounds: {spreads}")
    print("set-up, medians: " + ", ".join(f"{side} {statistics.median(each):.1f} s" for side, each in setups.items()))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
