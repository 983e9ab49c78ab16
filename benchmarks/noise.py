"""Where does the noise of a measured rate come from: the machine's drift, the process, its workers, or the windows of one measurement?

    python benchmarks/noise.py images objects table
    python benchmarks/noise.py images --processes 8 --starts 3 --max-trial-s 8
    python benchmarks/noise.py images --step-first      is the first start of a process slower after the step has run alone, as in a search?

Measures one setting of each workload again and again: in fresh processes, one after the other, and in each process several times with fresh
workers. Splits the variance of log(rate) by a nested analysis of variance (Searle, Casella and McCulloch, Variance Components, 1992, 3.3) into
that between processes, between starts of the workers in one process, and between windows of one start (as far as these matter for the mean of
the windows). Drift is the part of that between processes which two processes that follow each other have in common. Takes two to four minutes a workload; use a quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
from typing import Any

SETTINGS = {"images": 2, "objects": 16, "table": 0}
"""Workload -> number of workers."""
BATCH_SIZE = 32


def starts(name: str, num_starts: int, max_trial_s: float, step_first: bool) -> list[dict[str, Any]]:
    """Measure the setting several times in this process, each time with fresh workers and the same training step.

    With `step_first`, the step is timed alone before the first start, as in the first trial of a search.
    """
    from feedrate.trainables.bundled.images import images
    from feedrate.trainables.bundled.objects import objects
    from feedrate.trainables.bundled.table import table
    from feedrate.trainables.config import LoaderConfig
    from feedrate.trainables.measuring.measure import measure
    from feedrate.trainables.measuring.measure_options import MeasureOptions

    workload = {"images": images, "objects": objects, "table": table}[name]()
    config = LoaderConfig(batch_size=BATCH_SIZE, num_workers=SETTINGS[name])
    steps: dict[Any, Any] = {}
    found = []
    for number in range(num_starts):
        options = MeasureOptions(max_trial_s=max_trial_s, measure_step=step_first and number == 0)
        *_, last = measure(workload, config, options, steps=steps)
        windows = last.windows
        rates = [items / seconds for items, seconds in zip(windows.window_num_items, windows.window_duration_s, strict=True)]
        found.append({"rates": rates, "sps": windows.rate().sps, "foreign": last.foreign_cpu_fraction, "steal": last.steal_fraction})
    return found


def components(logs: list[list[float]], within: float) -> dict[str, float]:
    """Return the standard deviations of the parts of log(rate).

    Args:
        logs: log of the rate of each start, shape (processes, starts).
        within: variance of the mean of the windows of one start.
    """
    num_starts = len(logs[0])
    between_starts = statistics.mean(statistics.variance(each) for each in logs)  # of the starts of one process, windows included
    means = [statistics.mean(each) for each in logs]
    between_processes = statistics.variance(means)  # starts included
    neighbours = statistics.mean((second - first) ** 2 for first, second in itertools.pairwise(means)) / 2
    parts = {
        "windows": within,
        "starts": max(between_starts - (0.0 if math.isnan(within) else within), 0.0),
        "processes": max(between_processes - between_starts / num_starts, 0.0),
        "drift": max(between_processes - neighbours, 0.0),
        "total": between_processes + between_starts * (1 - 1 / num_starts),
    }
    return {name: math.sqrt(each) for name, each in parts.items()}


def compare(name: str, num_processes: int, num_starts: int, max_trial_s: float, step_first: bool) -> None:
    """Print the parts of the noise of one workload."""
    logs, variances, loads = [], [], []
    for number in range(num_processes):
        words = json.dumps([name, num_starts, max_trial_s, step_first])
        done = subprocess.run([sys.executable, "-W", "ignore", __file__, "--one", words], check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        logs.append([math.log(each["sps"]) for each in found])
        for each in found:
            windows = [math.log(rate) for rate in each["rates"] if rate > 0]
            if len(windows) > 1:
                variances.append(statistics.variance(windows) / len(windows))
            loads.append(each["foreign"] + each["steal"])
        print(f"{name} process {number + 1}: " + ", ".join(f"{each['sps']:,.1f}/s" for each in found), flush=True)
    parts = components(logs, statistics.mean(variances) if variances else math.nan)
    means = [math.exp(statistics.mean(each[number] for each in logs)) for number in range(num_starts)]
    print(f"{name}: mean of the first, second, ... start of a process: " + ", ".join(f"{each:,.1f}/s" for each in means), flush=True)
    shown = ", ".join(f"{part} {sd:.1%}" for part, sd in parts.items())
    print(f"{name} w{SETTINGS[name]}: {shown}; other processes and the hypervisor took {max(loads):.1%} of the CPUs at most", flush=True)


def main() -> int:
    """Print the parts of the noise of each workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", choices=[*SETTINGS, []], default=[])
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--max-trial-s", type=float, default=8.0)
    parser.add_argument("--step-first", action="store_true", help="time the step alone before the first start, as a search does")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(starts(*args.one)))
        return 0
    for name in args.workloads or SETTINGS:
        compare(name, args.processes, args.starts, args.max_trial_s, args.step_first)
    return 0


if __name__ == "__main__":
    sys.exit(main())
