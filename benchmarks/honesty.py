"""Is one trial's number true? Trials on hard workloads beside plain PyTorch loops, interleaved, fresh processes each.

    python benchmarks/honesty.py --trials 20 --out honesty.jsonl

Every workload of hard_workloads.py is measured by that many trials (20 s at most each, as a search does) and as many
plain loops without feedrate, whose pool is the reference. Prints for each workload the median error of a trial, how
many of the trials' 95 % intervals contain the reference, and the error of a stopwatch around the first 20 batches. Each
measurement is appended to `--out`: the same command goes on where it was stopped, and prints again when complete.
Exit code 1 when a median error is above 3 % or fewer than 90 % of the intervals contain the reference.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hard_workloads import SETTINGS, WORKLOADS

MOST_ERROR = 0.03
LEAST_COVERED = 0.9
DISCARD_S = 1.5
PLAIN_S = {"slow": 8.0, "heavy-tailed": 6.0}


def plain(name: str, seconds: float) -> dict[str, float]:
    """One training loop as anybody would write it: items and seconds between two batches, start-up discarded.

    The two are whole rounds of the workers apart; for `tiny`, whose epochs are the point, whole epochs.
    """
    import torch

    from feedrate.trainables.step import StepContext

    torch.manual_seed(time.time_ns() % 2**31)
    workload = WORKLOADS[name]()
    loader = workload.make_loader()
    step = workload.make_step(StepContext(device=torch.device("cpu"), batch_size=None))
    begun = time.perf_counter()
    times, items, starts = [], [], []
    while not times or times[-1] < begun + DISCARD_S + seconds:
        starts.append(len(times))
        for batch in loader:
            trained = step(batch)
            times.append(time.perf_counter())
            items.append(trained)
            if times[-1] > begun + DISCARD_S + seconds and name != "tiny":
                break
    naive = sum(items[:20]) / (times[19] - begun)  # type: ignore[arg-type]
    first = next(index for index, at in enumerate(times) if at > begun + DISCARD_S)
    if name == "tiny":
        edges = [start for start in starts if start >= first]
        first, last = edges[0], edges[-1]
    else:
        last = first + (len(times) - 1 - first) // loader.num_workers * loader.num_workers
    return {"items": sum(items[first + 1 : last + 1]), "seconds": times[last] - times[first], "naive": naive}  # type: ignore[arg-type]


@functools.cache
def template_of(name: str) -> Any:
    """What a search forks its trials from."""
    from feedrate.trainables.resolve import make_ref
    from feedrate.trainables.sandbox.template import Template

    path = Path(__file__).with_name("hard_workloads.py")
    template = Template(make_ref(f"{path}:{name.replace('-', '_')}"), show_output=True)
    atexit.register(template.close)
    return template


def trial(name: str, seed: int) -> dict[str, Any]:
    """One trial in a clean child, as a search runs it."""
    from feedrate.analysis.estimate import record_rate
    from feedrate.trainables.config import LoaderConfig
    from feedrate.trainables.measuring.measure_options import MeasureOptions
    from feedrate.trainables.protocol import Failed, Measured, MeasureRequest, outcome

    request = MeasureRequest(config=LoaderConfig(**SETTINGS[name]), options=MeasureOptions(seed=seed, max_trial_s=20.0))
    template = template_of(name)
    begun = time.perf_counter()
    end = outcome(template.run(request, max_s=20), Measured)
    if isinstance(end, Failed):
        raise SystemExit(f"{name}: the trial failed: {end.failure.message}")
    columns = end.columns
    rate = record_rate(columns)
    assert rate is not None
    return {
        "sps": rate.sps,
        "low": rate.low_sps,
        "high": rate.high_sps,
        "settled": columns["settled"],
        "boundary_from": columns["boundary_from"],
        "wall_s": time.perf_counter() - begun,
    }


def report(rows: list[dict[str, Any]]) -> bool:
    """Print the table; whether the claims hold."""
    print(f"{'workload':14}{'reference':>12}{'plain sd':>10}{'median |error|':>16}{'bias':>8}{'covered':>10}{'half-width':>12}{'naive error':>13}{'trial':>8}")
    good, covered, total = True, 0, 0
    for name in WORKLOADS:
        plains = [row for row in rows if row["workload"] == name and row["side"] == "plain"]
        trials = [row for row in rows if row["workload"] == name and row["side"] == "trial"]
        if not plains or not trials:
            continue
        reference = sum(row["items"] for row in plains) / sum(row["seconds"] for row in plains)
        errors = [row["sps"] / reference - 1 for row in trials]
        inside = sum(row["low"] <= reference <= row["high"] for row in trials)
        naive = statistics.median(row["naive"] / reference - 1 for row in plains)
        spread = statistics.pstdev(row["items"] / row["seconds"] / reference for row in plains)
        width = statistics.median((row["high"] - row["low"]) / 2 / row["sps"] for row in trials)
        median = statistics.median(abs(error) for error in errors)
        wall = statistics.median(row["wall_s"] for row in trials)
        print(
            f"{name:14}{reference:12,.1f}{spread:10.1%}{median:16.1%}{statistics.median(errors):+8.1%}"
            f"{inside:6} of {len(trials):<3}{width:9.1%}{naive:+13.1%}{wall:7.1f}s"
        )
        good &= median <= MOST_ERROR
        covered, total = covered + inside, total + len(trials)
    print(f"{covered} of {total} intervals contain the reference")
    return good and covered >= LEAST_COVERED * total


def main() -> int:
    """Measure what is missing, or one plain run with --plain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, comma-separated")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        print(json.dumps(plain(args.plain, PLAIN_S.get(args.plain, 4.0))))
        return 0
    args.out.touch()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()]
    names = args.only.split(",")
    for number in range(args.trials):
        for name in names:
            for side in ("trial", "plain") if number % 2 else ("plain", "trial"):
                if any((row["workload"], row["side"], row["number"]) == (name, side, number) for row in rows):
                    continue
                if side == "plain":
                    command = [sys.executable, __file__, "--out", str(args.out), "--plain", name]
                    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                else:
                    found = trial(name, seed=1000 + number)
                rows.append({"workload": name, "side": side, "number": number, **found})
                with args.out.open("a") as stream:
                    stream.write(json.dumps(rows[-1]) + "\n")
        print(f"round {number + 1} of {args.trials}", file=sys.stderr, flush=True)
    return 0 if report([row for row in rows if row["workload"] in names]) else 1


if __name__ == "__main__":
    sys.exit(main())
