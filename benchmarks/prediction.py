"""How well does the model of loading know settings that were not measured?

    python benchmarks/prediction.py

For each recorded landscape (benchmarks/landscapes, and the workloads of hard_workloads.py in benchmarks/landscapes/hard), the model
(analysis/rate_model.py) is fitted to the baseline alone, then to three settings (no workers, as many workers as CPUs, four times as many;
all at the baseline's batch size), then to six. It then predicts every setting of the grid, except those with more workers than an epoch
has batches, which a search leaves out. Prints the median error, the share of the settings within 15 %, by how much the setting that it
expects to be the fastest is slower than the fastest one, and the rank of the fastest one: 1 + the number of settings that it expects to be
faster than that. Replays only: takes seconds, measures nothing.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd
from hard_workloads import SETTINGS
from hard_workloads import WORKLOADS as HARD
from landscape import Landscape, Point, read

from feedrate.analysis.cpu_time import CpuSeen, CpuTime
from feedrate.analysis.estimate import without_spinning
from feedrate.analysis.rate_model import fit_model

LANDSCAPES = Path(__file__).with_name("landscapes")
NAMES = ("table", "objects", "images", "images-noisy", *(f"hard/{name}" for name in SETTINGS))
WITHIN = 0.15


def known(points: list[Point], batch_size: int | None, workers: tuple[int, ...]) -> list[Point]:
    """The points at a batch size, with a prefetch factor of 2, that are nearest to these numbers of workers."""
    of_size = [each for each in points if each.config.batch_size == batch_size]
    near = [min(of_size, key=lambda each: (abs(each.config.num_workers - number), each.config.prefetch_factor not in (None, 2))) for number in workers]
    return list(dict.fromkeys(near))


def able(landscape: Landscape, name: str) -> list[Point]:
    """The points that a search would try: with no more workers than an epoch has batches."""
    num_samples = len(HARD[landscape.name]().make_loader().dataset) if name.startswith("hard/") else 0  # the other workloads have long epochs
    return [each for each in landscape.points if not num_samples or each.config.num_workers * (each.config.batch_size or 0) <= num_samples]


def cpu_time(path: Path, landscape: Landscape, points: list[Point]) -> CpuTime | None:
    """The CPU time that the recorded trials of these settings show."""
    rows = pd.read_parquet(path)
    seen = []
    for each in points:
        number, size = each.config.num_workers, each.config.batch_size or 0
        cpu_s = float(rows[(rows["num_workers"] == number) & (rows["batch_size"] == size)]["cpu_item_s"].median())
        step_cpu_s = landscape.step_cpus / landscape.ceilings[size] if landscape.step_cpus and size in landscape.ceilings else None
        cpu_s = without_spinning(cpu_s, number, landscape.load_cpu_item_s, step_cpu_s)
        seen.append(CpuSeen(num_workers=number, batch_size=size, cpu_item_s=cpu_s))
    return CpuTime.fit(seen, landscape.ceilings, landscape.step_cpus or 0.0)


def main() -> None:
    """Print a line for each landscape and number of measured settings."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{'landscape':18}{'settings':>9}{'measured':>10}{'median error':>14}{'within 15 %':>13}{'slower than best':>18}{'rank of best':>14}")
    errors: dict[int, list[float]] = {}
    for name in NAMES:
        path = LANDSCAPES / f"{name}.parquet"
        landscape = read(path)
        cpus = landscape.num_cpus
        tried = able(landscape, name)
        workers = np.array([each.config.num_workers for each in tried], dtype=float)
        sizes = np.array([each.config.batch_size or 0 for each in tried], dtype=float)
        measured = np.array([each.sps for each in tried])
        for numbers in ((0,), (0, cpus, 4 * cpus), (0, 1, cpus, 2 * cpus, 4 * cpus, 8 * cpus)):
            points = known(tried, landscape.baseline.batch_size, numbers)
            model = fit_model(
                [each.config.num_workers for each in points],
                [each.config.batch_size or 0 for each in points],
                [math.log(each.sps) for each in points],
                landscape.ceilings,
                cpu_time(path, landscape, points),
                cpus,
            )
            predicted = np.exp(model.log_rate(workers, sizes))
            error = np.abs(predicted / measured - 1)
            errors.setdefault(len(numbers), []).extend(error)
            behind = 1 - measured[predicted.argmax()] / measured.max()
            rank = 1 + (predicted > predicted[measured.argmax()] * (1 + 1e-9)).sum()
            print(f"{name:18}{len(measured):9}{len(points):10}{np.median(error):14.1%}{(error < WITHIN).mean():13.0%}{behind:18.1%}{rank:14}")
    for num, every in errors.items():
        print(f"{'all':18}{len(every):9}{num:10}{np.median(every):14.1%}{(np.array(every) < WITHIN).mean():13.0%}")


if __name__ == "__main__":
    main()
