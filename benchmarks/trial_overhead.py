"""What a trial costs beyond warm-up and timed windows: feedrate's trials beside stock Tune function trainables.

    python benchmarks/trial_overhead.py --trials 10

Both sides train the bundled `table` workload with the same settings, in turn, in one Ray session each: the stock one
is a plain function trainable that imports torch, builds model and loader, warms up and times windows of the same
length, as a Ray Tune user would write it. Wall time is from one trial's start to the next one's; warm-up (step warming
and step timing, settling) and timed windows are taken off. Prints the medians and their ratio; exit code 1 when ours is
more than a quarter. The first trial of each side, which starts the actor, is shown apart.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MOST_RATIO = 0.25


def ours(trials: int) -> list[float]:
    """Seconds of overhead of each trial but the last, in order."""
    from feedrate.search import SearchOptions, run_search

    with tempfile.TemporaryDirectory() as folder:
        run_search(
            "table",
            options=SearchOptions(max_trials=trials, time_budget_s=600, max_trial_s=5, sampler="random"),
            space={"num_workers": 2, "batch_size": 64, "prefetch_factor": _choices(trials)},
            out=Path(folder) / "run",
            quiet=True,
        )
        lines = [json.loads(line) for line in (Path(folder) / "run" / "trials.jsonl").read_text().splitlines()]
    failed = [line["failure_message"] for line in lines if line.get("failure_kind")]
    if failed:
        raise SystemExit(f"a trial failed: {failed[0]}")
    paid = [line["setup_s"] + line["settle_s"] + sum(line["window_duration_s"]) for line in lines]
    starts = [line["started_unix_s"] for line in lines]
    return [after - before - warm for before, after, warm in zip(starts, starts[1:], paid, strict=False)]


def _choices(trials: int) -> Any:
    from feedrate.search.dimension import Choice

    return Choice(tuple(range(1, trials + 1)))  # enough different settings: none is tried twice


def stock(trials: int) -> list[float]:
    """The same for a stock function trainable."""
    os.environ.update({"RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_USAGE_STATS_ENABLED": "0"})
    import ray
    from ray import tune

    with tempfile.TemporaryDirectory() as folder:
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024**2, log_to_driver=False, logging_level="ERROR")
        tuner = tune.Tuner(
            tune.with_resources(_stock_trial, {"cpu": 2}),
            param_space={"prefetch_factor": tune.grid_search(list(range(1, trials + 1)))},
            tune_config=tune.TuneConfig(metric="rate", mode="max"),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        results = tuner.fit()
        ray.shutdown()
    rows = sorted((result.metrics["started"], result.metrics["paid_s"]) for result in results)
    return [after[0] - before[0] - before[1] for before, after in itertools.pairwise(rows)]


def _stock_trial(config: dict[str, Any]) -> None:
    started = time.time()
    import torch
    from ray import tune
    from torch.utils.data import DataLoader

    from feedrate.trainables.step import StepContext
    from feedrate.trainables.table import table

    workload = table()
    step = workload.make_step(StepContext(device=torch.device("cpu"), batch_size=64))
    loader = DataLoader(workload.dataset, batch_size=64, shuffle=True, num_workers=2, prefetch_factor=config["prefetch_factor"], collate_fn=workload.collate_fn)
    batches = iter(loader)
    first = next(batches)
    begun = time.time()
    while time.time() - begun < 0.5:
        step(first)
    timed = samples = 0.0
    while timed < 3.0:
        before = time.time()
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            continue
        step(batch)
        samples += len(batch[1])
        timed += time.time() - before
    tune.report({"rate": samples / timed, "started": started, "paid_s": time.time() - begun})


def main() -> int:
    """Both sides in one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    trials = parser.parse_args().trials
    rows = {"feedrate": ours(trials), "stock Tune": stock(trials)}
    print(f"{'':12}{'median':>10}{'first':>10}   the others   (seconds beyond warm-up and timed windows, {trials} trials)")
    for name, values in rows.items():
        print(f"{name:12}{statistics.median(values):10.2f}{values[0]:10.2f}   {'  '.join(f'{value:.2f}' for value in values[1:])}")
    ratio = statistics.median(rows["feedrate"]) / statistics.median(rows["stock Tune"])
    print(f"ratio of the medians: {ratio:.2f}")
    return 0 if ratio <= MOST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
