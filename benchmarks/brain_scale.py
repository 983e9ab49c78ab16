"""How long asking and telling take as a study grows, on every storage, for our study and stock OptunaSearch's.

    python benchmarks/brain_scale.py --trials 1000

Prints medians in milliseconds over the last 100 trials of 100, 300, 1,000, and the memory of the process at the end of
each. `--storage postgresql://...` adds a database. Exit code 1 when ours takes more than 50 ms for either.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

MOST_MS = 50.0


def drive(ask: Callable[[], tuple[Any, int]], tell: Callable[[Any, float], None], num_trials: int) -> None:
    """Print `trials ask_ms tell_ms rss_mb` at each mark; `ask` gives what `tell` wants back and a number of workers."""
    rng, asks, tells = random.Random(0), [], []
    for number in range(1, num_trials + 1):
        begun = time.perf_counter()
        asked, num_workers = ask()
        asks.append(time.perf_counter() - begun)
        sps = 1000.0 * min(num_workers + 1, 40) * math.exp(rng.gauss(0, 0.02))
        begun = time.perf_counter()
        tell(asked, sps)
        tells.append(time.perf_counter() - begun)
        if number in (100, 300, num_trials):
            ask_ms, tell_ms = (1000 * statistics.median(each[-100:]) for each in (asks, tells))
            print(number, ask_ms, tell_ms, psutil.Process().memory_info().rss / 1e6, flush=True)


def ours(storage: str | None, folder: Path, sampler: str, num_trials: int) -> None:
    """Our study."""
    from feedrate.search.space.search_space import SearchSpace
    from feedrate.search.study.brain import Brain

    space = SearchSpace.default(num_cpus=64, has_accelerator=True)
    brain = Brain.open(storage, folder / "study.journal", study_name="scale", space=space, sampler=sampler)

    def ask() -> tuple[int, int]:
        asked = brain.ask()
        assert asked is not None
        return asked.number, asked.config.num_workers

    drive(ask, lambda number, sps: brain.tell_complete(number, sps, {"low_sps": 0.96 * sps, "wait_fraction": 0.1}), num_trials)


def stock(storage: str | None, folder: Path, sampler: str, num_trials: int) -> None:
    """OptunaSearch as Tune drives it."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    kept = RDBStorage(storage) if storage else JournalStorage(JournalFileBackend(str(folder / "stock.journal")))
    search = OptunaSearch(space=None, metric="sps", mode="max", seed=0, storage=kept, study_name="stock")
    space = {"num_workers": tune.randint(0, 129), "batch_size": tune.choice([32, 64, 128]), "prefetch_factor": tune.choice([1, 2, 4, 8]),
             "persistent_workers": tune.choice([True, False]), "pin_memory": tune.choice([True, False])}  # fmt: skip
    search.set_search_properties("sps", "max", space)
    names = map(str, itertools.count())

    def ask() -> tuple[str, int]:
        name = next(names)
        return name, search.suggest(name)["num_workers"]

    drive(ask, lambda name, sps: search.on_trial_complete(name, {"sps": sps}), num_trials)


SIDES = {"gp": ours, "tpe": ours, "random": ours, "OptunaSearch": stock}


def main() -> int:
    """A fresh process for each side and storage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--storage", metavar="URL", help="a database beside the journal file and SQLite")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        side, storage, folder = args.one
        SIDES[side](storage or None, Path(folder), side, args.trials)
        return 0
    print(f"{'storage':14}{'side':14}{'trials':>8}{'ask ms':>9}{'tell ms':>9}{'RSS MB':>9}")
    slow = False
    for name in ("journal", "SQLite", *(["database"] if args.storage else [])):
        for side in SIDES:
            with tempfile.TemporaryDirectory() as folder:
                storage = {"journal": "", "SQLite": f"sqlite:///{folder}/study.db"}.get(name, args.storage)
                command = [sys.executable, "-W", "ignore", __file__, "--trials", str(args.trials), "--one", side, storage, folder]
                lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
            for line in lines:
                number, ask_ms, tell_ms, rss_mb = map(float, line.split())
                print(f"{name:14}{side:14}{number:>8.0f}{ask_ms:>9.1f}{tell_ms:>9.1f}{rss_mb:>9.0f}", flush=True)
                slow |= side != "OptunaSearch" and max(ask_ms, tell_ms) > MOST_MS
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
