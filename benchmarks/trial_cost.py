"""What a trial costs: feedrate's trials beside stock Tune function trainables and plain scripts.

    python benchmarks/trial_cost.py --trials 10

All sides train the bundled `table` workload with the same settings (prefetch_factor differs), one side after the other
on an otherwise idle machine. A stock trial is a function trainable that imports torch, builds model and loader, warms
up half a second and times 3 s of windows, as a Ray Tune user would write it; the plain script does the same in a fresh
Python process. For each side, medians in seconds: from a trial's start to its first timed window, in total (from one
trial's start to the next one's), the share of it that is timed windows, and the overhead: what is neither warming,
settling, windows nor epoch boundaries. The first trial of each side, which starts the actor, is shown apart.

Exit code 1 when feedrate's overhead is more than a quarter of the stock one, or less than half of its trials' time is
timed windows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MOST_RATIO = 0.25
LEAST_TIMED = 0.5
WARM_S, TIMED_S = 0.5, 3.0
Cost = dict[str, float]
"""first_window_s, total_s, timed_s, overhead_s of one trial."""


def ours(trials: int) -> list[Cost]:
    """The costs of each trial but the last, in order, from the records of a search at its defaults."""
    from feedrate.search import SearchOptions, run_search
    from feedrate.search.space.dimension import Choice

    prefetch = Choice(tuple(range(1, trials + 2)))  # enough different settings: none is tried twice
    with tempfile.TemporaryDirectory() as folder:
        run_search(
            "table",
            options=SearchOptions(max_trials=trials + 1, time_budget_s=900, sampler="random", confirm=False, keep_going=True),
            space={"num_workers": 2, "batch_size": 64, "prefetch_factor": prefetch, "persistent_workers": False},
            out=Path(folder) / "run",
            quiet=True,
        )
        lines = [json.loads(line) for line in (Path(folder) / "run" / "trials.jsonl").read_text().splitlines()]
    failed = [line["failure_message"] for line in lines if line.get("failure_kind")]
    if failed:
        raise SystemExit(f"a trial failed: {failed[0]}")
    costs = []
    for line, after in itertools.pairwise(lines):
        timed = sum(line["window_duration_s"])
        warmed = line["setup_s"] + line["iter_s"] + line["first_batch_s"] + line["settle_s"]
        epochs = sum(line["epoch_duration_s"] or [])
        total = after["started_unix_s"] - line["started_unix_s"]
        overhead = total - warmed - timed - epochs
        costs.append({"first_window_s": warmed + overhead, "total_s": total, "timed_s": timed, "overhead_s": overhead})
    return costs


def _train_once(prefetch_factor: int, begun_unix_s: float) -> Cost:
    """What a user's trial does: build, warm up, time windows."""
    import torch
    from torch.utils.data import DataLoader

    from feedrate.trainables.bundled.table import table
    from feedrate.trainables.step import StepContext

    workload = table()
    step = workload.make_step(StepContext(device=torch.device("cpu"), batch_size=64))
    loader = DataLoader(workload.dataset, batch_size=64, shuffle=True, num_workers=2, prefetch_factor=prefetch_factor, collate_fn=workload.collate_fn)
    batches = iter(loader)
    first = next(batches)
    warm = time.time()
    while time.time() - warm < WARM_S:
        step(first)
    timed_from, samples = time.time(), 0
    while time.time() - timed_from < TIMED_S:
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            continue
        step(batch)
        samples += len(batch[1])
    ended = time.time()
    return {"first_window_s": timed_from - begun_unix_s, "timed_s": ended - timed_from, "ended": ended, "warm_s": timed_from - warm}


def _stock_trial(config: dict[str, Any]) -> None:
    from ray import tune

    tune.report({"cost": json.dumps(_train_once(config["prefetch_factor"], time.time()))})


def stock(trials: int) -> list[Cost]:
    """The same for stock function trainables, one after the other."""
    os.environ.update({"RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_USAGE_STATS_ENABLED": "0"})
    import ray
    from ray import tune

    with tempfile.TemporaryDirectory() as folder:
        ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024**2, log_to_driver=False, logging_level="ERROR")
        tuner = tune.Tuner(
            tune.with_resources(_stock_trial, {"cpu": 2}),
            param_space={"prefetch_factor": tune.grid_search(list(range(1, trials + 2)))},
            tune_config=tune.TuneConfig(metric="training_iteration", mode="max"),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        began = time.time()
        results = tuner.fit()
        ray.shutdown()
    found = sorted((json.loads(result.metrics["cost"]) for result in results), key=lambda cost: cost["ended"])
    return [_total(cost, before) for cost, before in zip(found, [began, *(cost["ended"] for cost in found)], strict=False)][:trials]


def _total(cost: Cost, before: float) -> Cost:
    """Seconds since the trial before ended: what comes between two trials is the second one's cost."""
    total = cost["ended"] - before
    return {
        "first_window_s": total - cost["timed_s"],
        "total_s": total,
        "timed_s": cost["timed_s"],
        "overhead_s": total - cost["timed_s"] - cost["warm_s"],
    }


def plain(trials: int) -> list[Cost]:
    """The same for plain scripts."""
    costs = []
    for number in range(trials):
        before = time.time()
        command = [sys.executable, "-W", "ignore", __file__, "--plain", str(number + 1)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        costs.append(_total(json.loads(output.splitlines()[-1]) | {"ended": time.time()}, before))
    return costs


def main() -> int:
    """All sides in one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--plain", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain is not None:
        print(json.dumps(_train_once(args.plain, time.time())))
        return 0
    sides = {"feedrate": ours(args.trials), "stock Tune": stock(args.trials), "plain script": plain(args.trials)}
    print(f"{'':14}{'to first window':>17}{'total':>9}{'timed':>8}{'share':>8}{'overhead':>10}{'first trial':>13}   seconds, medians of {args.trials} trials")
    medians = {}
    for name, costs in sides.items():
        later = costs[1:] or costs
        medians[name] = {key: statistics.median(cost[key] for cost in later) for key in costs[0]}
        share = statistics.median(cost["timed_s"] / cost["total_s"] for cost in later)
        medians[name]["share"] = share
        shown = medians[name]
        print(
            f"{name:14}{shown['first_window_s']:17.2f}{shown['total_s']:9.2f}{shown['timed_s']:8.2f}{share:8.0%}"
            f"{shown['overhead_s']:10.2f}{costs[0]['total_s']:13.2f}"
        )
    ratio = medians["feedrate"]["overhead_s"] / medians["stock Tune"]["overhead_s"]
    print(f"overhead, feedrate / stock Tune: {ratio:.2f}")
    return 0 if ratio <= MOST_RATIO and medians["feedrate"]["share"] >= LEAST_TIMED else 1


if __name__ == "__main__":
    sys.exit(main())
