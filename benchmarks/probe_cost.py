"""How much does timing the processes that load slow them down?

    python benchmarks/probe_cost.py

Reads the same loader in turn with and without trainables/loader/load_probe.py, for samples that cost 0, 10, 100 and 1000 microseconds of CPU
time, without workers, in this process. Prints the median of the ratios of neighbouring epochs, and their quartiles. Takes about a minute.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from torch.utils.data import DataLoader, Dataset

from feedrate.trainables.loader.loader_watch import LoaderWatch

EPOCH_S = 0.6
"""About how long an epoch takes."""


class Busy(Dataset):  # type: ignore[type-arg]
    """Samples that cost some CPU time."""

    def __init__(self, sample_s: float, num: int) -> None:
        self.sample_s, self.num = sample_s, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> int:
        end = time.perf_counter() + self.sample_s
        while self.sample_s and time.perf_counter() < end:
            pass
        return index


def epoch_cpu_s(sample_s: float, num: int, is_probed: bool) -> float:
    """Return the CPU seconds of an epoch."""
    loader: DataLoader[Any] = DataLoader(Busy(sample_s, num), batch_size=32)
    watch = LoaderWatch(loader)  # which counts batches on both sides
    if not is_probed:
        watch.probe = None  # type: ignore[assignment]
    batches = iter(loader)
    next(batches)
    begin = time.thread_time()
    for _ in range(num // 32 - 1):
        next(batches)
    return time.thread_time() - begin


def main() -> None:
    """Print a line for each cost of a sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=21)
    args = parser.parse_args()
    for sample_us in (0, 10, 100, 1000):
        num = int(EPOCH_S / (sample_us * 1e-6 + 3e-6)) // 32 * 32
        ratios = [epoch_cpu_s(sample_us * 1e-6, num, True) / epoch_cpu_s(sample_us * 1e-6, num, False) for _ in range(args.pairs)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"samples of {sample_us:5} us: with / without {middle:.4f} (quartiles {low:.4f} to {high:.4f})", flush=True)


if __name__ == "__main__":
    main()
