"""How much time does a training take with live(), beside the same training untouched and with the best fixed setting?

    python benchmarks/live_training.py table images objects --seconds 600 --rounds 2

For each bundled workload, a plain PyTorch loop trains equally many batches in fresh processes, in turn: untouched (the setting in OWN),
with `live(loader)` around that loader, and with each fixed number of workers in FIXED. The number of batches is what the
best fixed setting trains in --seconds. Prints the time of each, the ratios, when live settled and what it lost, and the time that
watching takes per batch. "changes" is images whose samples wait 30 ms from the middle of the training on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

OWN = {"table": 0, "images": 1, "objects": 2, "changes": 1}
FIXED = {"table": (0, 2), "images": (1, 2, 3, 4), "objects": (8, 16, 32), "changes": (2, 8, 16)}
BATCH_SIZE = 32
PROBE_S = 15.0


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


def train(name: str, num_workers: int, is_live: bool, num_batches: int, most_s: float) -> dict[str, Any]:
    """Train until either limit, and return what it took."""
    from torch.utils.data import DataLoader

    from feedrate.trainables import live
    from feedrate.trainables.bundled.images import images
    from feedrate.trainables.bundled.objects import objects
    from feedrate.trainables.bundled.table import table
    from feedrate.trainables.machine.accelerator import pick_device
    from feedrate.trainables.step import StepContext

    workload = {"table": table, "images": images, "objects": objects, "changes": images}[name]()
    step = workload.make_step(StepContext(device=pick_device(), batch_size=BATCH_SIZE))
    dataset: Any = Slower(workload.dataset, time.time() + most_s / 2) if name == "changes" else workload.dataset
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
    command = [sys.executable, __file__, "--one", json.dumps(words)]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]))


def watching_s() -> float:
    """Return the seconds per batch that observing adds to a plain loop over ready batches."""
    from feedrate.trainables.deciding.policy import Policy

    policy = Policy(2, cpus=2, most=32)
    begin, num = time.perf_counter(), 200_000
    for _ in range(num):
        time.perf_counter()
        policy.observe(2, 1e-5, 5e-3, int)
        time.perf_counter()
    return (time.perf_counter() - begin) / num


def compare(name: str, seconds: float, rounds: int) -> None:
    """Print the comparison of one workload."""
    probes = {number: apart(name, number, False, 10**9, PROBE_S) for number in FIXED[name]}
    rates = {number: each["num_batches"] / each["seconds"] for number, each in probes.items()}
    best = max(rates, key=lambda number: rates[number])
    num_batches = max(int(rates[best] * seconds), 10)
    sides: dict[str, tuple[int, bool]] = {"untouched": (OWN[name], False), "live": (OWN[name], True), f"fixed w{best}": (best, False)}
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            found = apart(name, *sides[side], num_batches, 20 * seconds)
            taken[side].append(found["seconds"])
            print(f"{name} round {number + 1} {side}: {found}", flush=True)
    medians = {side: statistics.median(each) for side, each in taken.items()}
    for side, each in medians.items():
        print(f"{name:8} {side:12} {each:8.1f} s  {medians['live'] / each:6.3f} = live / {side}", flush=True)


def main() -> int:
    """Compare every workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", choices=[*OWN, []], default=[])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(train(*args.one)))
        return 0
    each_s = watching_s()
    print(f"watching takes {1e6 * each_s:.1f} us per batch, {each_s / 5e-3:.3%} of a step of 5 ms", flush=True)
    for name in args.workloads or list(OWN):
        compare(name, args.seconds, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
