"""How noisy a recorded landscape is, and whether smoothing its truth over neighbours foretells what it did not see.

    python benchmarks/landscape_noise.py benchmarks/landscapes/*.parquet

Columns: settings and trials; by how much fresh starts of one setting differ (standard deviation of log(rate), the machine's drift
taken out); what trials next to each other have in common; and the error (root mean square) with which a repeat that was left out is
foretold by the mean of its setting's other repeats, and by `smoothed`, which sees the neighbours too. Settings below half of the best
are left out of the errors, as they are not smoothed.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from landscape import SMOOTHED_FRACTION, Landscape, read, smoothed


def left_out_errors(landscape: Landscape) -> tuple[float, float]:
    """By the mean of the others, and smoothed."""
    # residuals are scaled to the noise of one measurement; these are the measurements themselves
    logs = [
        math.log(point.mean_sps) + residuals * math.sqrt((len(residuals) - 1) / len(residuals))
        for point, residuals in zip(landscape.points, landscape.residuals, strict=True)
    ]
    least = math.log(SMOOTHED_FRACTION * max(point.mean_sps for point in landscape.points))
    errors: list[tuple[float, float]] = []
    for repeat in range(min(map(len, logs))):
        others = [np.delete(each, repeat) for each in logs]
        points = [replace(point, sps=math.exp(each.mean())) for point, each in zip(landscape.points, others, strict=True)]
        scaled = [(each - each.mean()) * math.sqrt(len(each) / max(len(each) - 1, 1)) for each in others]
        for point, sps, each in zip(points, smoothed(points, scaled), logs, strict=True):
            if each.mean() > least:
                errors.append((each[repeat] - math.log(point.sps), each[repeat] - math.log(sps)))
    by_mean, by_smoothing = np.sqrt((np.array(errors) ** 2).mean(axis=0))
    return float(by_mean), float(by_smoothing)


def main() -> None:
    """One line a landscape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("landscapes", nargs="+", type=Path, metavar="FILE", help="Parquet files of record_landscape.py")
    args = parser.parse_args()
    print(f"{'landscape':14}{'settings':>10}{'trials':>8}{'fresh starts':>14}{'in common':>11}{'others':>9}{'smoothed':>10}")
    for path in args.landscapes:
        found = read(path)
        fresh = math.sqrt(float(np.mean(np.concatenate(found.residuals) ** 2)))
        by_mean, by_smoothing = left_out_errors(found)
        print(
            f"{found.name:14}{len(found.points):>10}{sum(map(len, found.residuals)):>8}{fresh:>13.1%}"
            f"{float(np.std(found.drift.logs)):>11.1%}{by_mean:>9.1%}{by_smoothing:>10.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
