"""How much time does a training take with live(), beside the same training untouched and with the best fixed setting?

    python benchmarks/live_training.py overhead
    python benchmarks/live_training.py table images objects changing --seconds 600 --rounds 2

For each bundled workload, a plain PyTorch loop trains equally many batches in fresh processes, in turn: untouched (the setting in OWN),
with `live(loader)` around that loader, and with each fixed number of workers in FIXED. The number of batches is what the
best fixed setting trains in --seconds. Prints the time of each, the ratios, when live settled and what it lost. "changing" is images whose samples
wait 30 ms from the middle of the training on. "overhead" is the CPU time of the training's thread that live() adds to each batch,
which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from feedrate.trainables import live

OWN = {"table": 0, "images": 1, "objects": 2, "changing": 1}
FIXED = {"table": (0, 2), "images": (1, 2, 3, 4), "objects": (8, 16, 32), "changing": (2, 8, 16)}
BATCH_SIZE = 32
PROBE_S = 15.0
"""How long each fixed setting is timed to find the best one, or a third of --seconds if that is less."""
MOST_TIMES = 2
"""A side that needs more than this many times --seconds is ended, and its time is extrapolated from the batches that it has trained."""
OVERHEAD = "overhead"
STEP_S = 5e-3


class Slower:
    """A dataset whose samples take longer from a moment on."""

    def __init__(self, dataset: Any, from_unix_s: float) -> None:
        self.dataset, self.from_unix_s = dataset, from_unix_s

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if time.time() > self.from_unix_s:
            time.sleep(0.03)
        return self.dataset[index]


def train(name: str, num_workers: int, is_live: bool, num_batches: int, most_s: float, changes_s: float) -> dict[str, Any]:
    """Train until either limit, and return what it took; with "changing", samples wait from `changes_s` on."""
    from feedrate.trainables.bundled.images import images
    from feedrate.trainables.bundled.objects import objects
    from feedrate.trainables.bundled.table import table
    from feedrate.trainables.machine.accelerator import pick_device
    from feedrate.trainables.step import StepContext

    workload = {"table": table, "images": images, "objects": objects, "changing": images}[name]()
    step = workload.make_step(StepContext(device=pick_device(), batch_size=BATCH_SIZE))
    dataset: Any = Slower(workload.dataset, time.time() + changes_s) if name == "changing" else workload.dataset
    loader: Any = DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, collate_fn=workload.collate_fn, num_workers=num_workers)
    tuned = live(loader) if is_live else None
    begin, done = time.perf_counter(), 0
    while done < num_batches and time.perf_counter() - begin < most_s:
        for batch in loader if tuned is None else tuned:
            step(batch)
            done += 1
            if done >= num_batches or time.perf_counter() - begin >= most_s:
                break
    found: dict[str, Any] = {"num_batches": done, "seconds": time.perf_counter() - begin}
    if tuned is not None:
        settled = [each.time_s for each in tuned.decisions() if each.kind in ("settled", "enough")]
        found |= {"settled_s": settled[0] if settled else None, "best": tuned.tuned.policy.best, "lost_s": tuned.summary()["lost_s"]}
        tuned.close()
    return found


def apart(*words: object) -> dict[str, Any]:
    """Call `train` in a fresh process."""
    advice = "ignore:This DataLoader will create:UserWarning"  # torch's, about more workers than CPUs
    command = [sys.executable, "-W", advice, __file__, "--one", json.dumps(words)]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]))


class Ready(Dataset):  # type: ignore[type-arg]
    """Samples that cost nothing."""

    def __init__(self, num: int) -> None:
        self.sample, self.num = torch.zeros(8), num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.sample


def batch_cpu_s(num_workers: int, is_live: bool, num_batches: int) -> float:
    """Return the CPU seconds of this thread for each batch of an epoch in which nothing is tried."""
    loader: Any = DataLoader(Ready(num_batches), batch_size=1, num_workers=num_workers)
    if is_live:
        loader = live(loader, budget_fraction=0.0, quiet=True)
    batches = iter(loader)
    next(batches)
    begin = time.thread_time()
    for _ in batches:
        pass
    return (time.thread_time() - begin) / (num_batches - 1)


def print_overhead(num_rounds: int = 11, num_batches: int = 2000) -> None:
    """Print what live() adds to each batch: the median of differences between neighbouring epochs, with and without it."""
    for num_workers in (0, 2):
        pairs = [(batch_cpu_s(num_workers, False, num_batches), batch_cpu_s(num_workers, True, num_batches)) for _ in range(num_rounds)]
        added_s = statistics.median(watched - plain for plain, watched in pairs)
        low_s, high_s = (statistics.quantiles([watched - plain for plain, watched in pairs], n=4)[number] for number in (0, 2))
        print(
            f"overhead with {num_workers} workers: {1e6 * added_s:.1f} us per batch (quartiles {1e6 * low_s:.1f} to {1e6 * high_s:.1f}), "
            f"{added_s / STEP_S:.2%} of a step of {1000 * STEP_S:.0f} ms",
            flush=True,
        )


def compare(name: str, seconds: float, rounds: int) -> None:
    """Print the comparison of one workload."""
    probe_s = min(PROBE_S, seconds / 3)
    probes = {number: apart(name, number, False, 10**9, probe_s, probe_s / 2) for number in FIXED[name]}
    rates = {number: each["num_batches"] / each["seconds"] for number, each in probes.items()}
    print(f"{name}: batches per second with fixed numbers of workers: {({number: round(rate, 2) for number, rate in rates.items()})}", flush=True)
    best = max(rates, key=lambda number: rates[number])
    num_batches = max(int(rates[best] * seconds), 10)
    sides: dict[str, tuple[int, bool]] = {"untouched": (OWN[name], False), "live": (OWN[name], True), f"fixed w{best}": (best, False)}
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            found = apart(name, *sides[side], num_batches, MOST_TIMES * seconds, seconds / 2)
            taken[side].append(found["seconds"] * num_batches / found["num_batches"])
            print(f"{name} round {number + 1} {side}: {found}", flush=True)
    medians = {side: statistics.median(each) for side, each in taken.items()}
    for side, each in medians.items():
        print(f"{name:8} {side:12} {each:8.1f} s  {medians['live'] / each:6.3f} = live / {side}", flush=True)


def main() -> int:
    """Compare every workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", choices=[OVERHEAD, *OWN, []], default=[])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(train(*args.one)))
        return 0
    for name in args.workloads or [OVERHEAD, *OWN]:
        if name == OVERHEAD:
            print_overhead()
        else:
            compare(name, args.seconds, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
