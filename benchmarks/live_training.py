"""How fast does a training with live() go, beside the same training untouched and with the best fixed setting?

    python benchmarks/live_training.py overhead
    python benchmarks/live_training.py table images objects changing --seconds 600
    python benchmarks/live_training.py settled --seconds 300

For each bundled workload, one process trains with a plain PyTorch loop: with each fixed number of workers in FIXED for a moment, to
find the best one; then for --seconds with `live(loader)` around a loader with the setting in OWN. That training stops every half a minute (the first time after a minute and a half), and one with the best
fixed number, or an untouched one (the setting in OWN), takes a turn, so that a drift of the machine cancels out. All of it runs in one process, because two
processes with the same setting differ by more than the few per cent that this benchmark looks for. Each side keeps its loader, whose queue fills during the turns
of the others. So the first QUEUE_S of a turn are not timed, except at the very beginning of live(); and live and the fixed number have turns of the same length, because a queue
lasts longer than that if loading is nearly as fast as the step.
Prints the rate of each over its whole time, the ratios with their 95 % interval, when live settled and what it lost.
"changing" is images whose samples wait 30 ms from the middle of everything on. "overhead" is the CPU time of the training's
thread that live() adds to each batch, which other work on the machine hardly changes. "settled" is table, where nothing is to be gained: once live()
tries nothing more, a few steps with it and a few untouched take turns.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from feedrate.analysis.estimate import t_quantile
from feedrate.trainables import live

OWN = {"table": 0, "images": 1, "objects": 2, "changing": 1}
FIXED = {"table": (0, 2), "images": (1, 2, 3, 4), "objects": (8, 16, 32), "changing": (2, 8, 16)}
BATCH_SIZE = 32
PROBE_S, TURN_S, UNTOUCHED_S, QUEUE_S = 10.0, 30.0, 10.0, 2.0
"""How long each fixed setting is timed to find the best one, the length of a turn of live and of the best fixed setting, that of the untouched one, and the untimed beginning of a turn.
All but the last are less if --seconds is less than 300."""
FIRST_TURNS = 3
"""Live's first turn is this many times as long, because it searches then."""
FIXED_EVERY, UNTOUCHED_EVERY = 2, 3
"""The other sides have a turn after so many of live."""
OVERHEAD, SETTLED = "overhead", "settled"
STEPS = 150
"""Number of steps of each part of "settled"."""
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


class Training:
    """A workload that is trained in this process, again and again.

    Args:
        name: the workload.
    """

    def __init__(self, name: str) -> None:
        from feedrate.trainables.bundled.images import images
        from feedrate.trainables.bundled.objects import objects
        from feedrate.trainables.bundled.table import table
        from feedrate.trainables.machine.accelerator import pick_device
        from feedrate.trainables.step import StepContext

        self.workload = {"table": table, "images": images, "objects": objects, "changing": images}[name]()
        self.is_changing = name == "changing"
        self.step = self.workload.make_step(StepContext(device=pick_device(), batch_size=BATCH_SIZE))

    def loader(self, num_workers: int, changes_unix_s: float) -> Any:
        """Return a new loader; if the workload changes, it does so then."""
        dataset = self.workload.dataset
        if self.is_changing:
            dataset = Slower(dataset, changes_unix_s)
        return DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, collate_fn=self.workload.collate_fn, num_workers=num_workers)

    def turn(self, batches: Iterator[Any], seconds: float, *, is_first: bool = False) -> tuple[int, float]:
        """Train for a while; return the number of batches and the seconds that they took, without those that were queued (unless it is the first turn)."""
        begin, done = time.perf_counter(), 0
        timed_from = begin if is_first else begin + QUEUE_S
        until = timed_from + seconds
        for batch in batches:
            self.step(batch)
            now = time.perf_counter()
            if now < timed_from:
                begin = now
                continue
            done += 1
            if now >= until:
                return done, now - begin
        raise RuntimeError("an endless loader has ended")

    def probe(self, num_workers: int, seconds: float) -> float:
        """Return the batches per second with a fixed setting."""
        num, taken_s = self.turn(endless(self.loader(num_workers, time.time() + seconds / 2)), seconds, is_first=True)
        return num / taken_s


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


def endless(loader: Any) -> Iterator[Any]:
    """Yield the batches of one epoch after another."""
    while True:
        yield from loader


def timed(step: Any, batches: Iterator[Any]) -> tuple[float, float]:
    """Train STEPS steps and return the seconds, and the CPU seconds of this thread, of each."""
    begin, cpu_begin = time.perf_counter(), time.thread_time()
    for _ in range(STEPS):
        step(next(batches))
    return (time.perf_counter() - begin) / STEPS, (time.thread_time() - cpu_begin) / STEPS


def interval(logs: list[float]) -> tuple[float, float, float]:
    """Return the lower end, the middle and the upper end of the 95 % interval of a ratio, from the logarithms of single ones."""
    half = t_quantile(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    low, middle, high = (math.exp(statistics.mean(logs) + sign * half) for sign in (-1, 0, 1))
    return low, middle, high


def compare_settled(seconds: float) -> None:
    """Print what a step costs more in a training that live() only watches: STEPS steps untouched and STEPS with it in turn, in both orders."""
    training = Training("table")
    tuned = live(training.loader(0, math.inf))
    plain, watched = endless(training.loader(0, math.inf)), endless(tuned)
    while not {"settled", "enough"} & {each.kind for each in tuned.decisions()}:
        training.turn(watched, 2.0, is_first=True)
    logs, added_s = [], []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sides = [plain, watched] if len(logs) % 2 else [watched, plain]
        found = {id(side): timed(training.step, side) for side in sides}
        (plain_s, plain_cpu_s), (watched_s, watched_cpu_s) = found[id(plain)], found[id(watched)]
        logs.append(math.log(plain_s / watched_s))
        added_s.append(watched_cpu_s - plain_cpu_s)
    low, middle, high = interval(logs)
    print(
        f"settled: live / untouched {middle:.4f} [{low:.4f}-{high:.4f}] in {len(logs)} pairs of {STEPS} steps, median {math.exp(statistics.median(logs)):.4f}; "
        f"{1e6 * statistics.median(added_s):.1f} us of CPU time more per step",
        flush=True,
    )


def compare(name: str, seconds: float) -> None:
    """Print the comparison of one workload."""
    training = Training(name)
    scale = min(1.0, seconds / 300)
    probe_s, turn_s, untouched_s = (scale * each for each in (PROBE_S, TURN_S, UNTOUCHED_S))
    training.probe(FIXED[name][0], probe_s)  # the first workers of a process are slower than later ones
    probes = {number: training.probe(number, probe_s) for number in FIXED[name]}
    best = max(probes, key=lambda number: probes[number])
    print(f"{name}: batches/s with fixed numbers of workers: {({number: round(rate, 2) for number, rate in probes.items()})}", flush=True)
    num_turns = max(round(seconds / turn_s) - FIRST_TURNS + 1, FIXED_EVERY + 1)
    rare = {"untouched": (UNTOUCHED_EVERY, untouched_s), "fixed": (FIXED_EVERY, turn_s)}
    taken_s = seconds + num_turns * (QUEUE_S + sum((side_s + QUEUE_S) / every for every, side_s in rare.values()))
    changes_unix_s = time.time() + taken_s / 2
    tuned = live(training.loader(OWN[name], changes_unix_s))
    batches = endless(tuned)
    numbers = {"untouched": OWN[name], "fixed": best}
    sides = {side: endless(training.loader(number, changes_unix_s)) for side, number in numbers.items()}
    found: list[tuple[int, float]] = []
    others: dict[str, dict[int, float]] = {side: {} for side in sides}
    for number in range(num_turns):
        found.append(training.turn(batches, turn_s if number else FIRST_TURNS * turn_s, is_first=not number))
        for side, each in sides.items():
            every, side_s = rare[side]
            if number % every == 0:
                num, turn_taken_s = training.turn(each, side_s)
                others[side][number] = num / turn_taken_s
    settled = [f"{each.kind} with {each.num_workers} after {each.time_s:.0f} s" for each in tuned.decisions() if each.kind in ("settled", "enough")]
    summary = tuned.summary()
    tuned.close()
    whole = sum(num for num, _ in found) / sum(live_taken_s for _, live_taken_s in found)
    print(f"{name}: live {whole:.2f} batches/s, waited {summary['wait_fraction']:.1%}, lost {summary['lost_s']:.1f} s, {'; '.join(settled) or 'not settled'}")
    print(f"{name}: live, batches/s in its turns: {' '.join(f'{num / live_taken_s:.2f}' for num, live_taken_s in found)}")
    for side, each_rates in others.items():
        low, middle, high = whole_ratio(found, each_rates)
        parts = " ".join(f"{rate:.2f}" for rate in each_rates.values())
        print(f"{name:8} live / {side + ' w' + str(numbers[side]):13} {middle:.3f} [{low:.3f}-{high:.3f}]   turns: {parts}", flush=True)


def whole_ratio(found: list[tuple[int, float]], others: dict[int, float]) -> tuple[float, float, float]:
    """Return the lower end, the middle and the upper end of the 95 % interval of a ratio: live's batches, by those of another side in the same time.

    Each turn of the other side stands for the turns of live that are nearest to it. The interval comes from the deviations of these groups (as of a ratio
    estimate: Cochran, Sampling Techniques, 6.4).

    Args:
        found: number of batches and seconds of each turn of live.
        others: batches per second of the other side, after some of those turns.
    """
    groups = {number: [0.0, 0.0] for number in others}
    for turn, (num, taken_s) in enumerate(found):
        near = min(others, key=lambda number: abs(number - turn))
        groups[near][0] += num
        groups[near][1] += taken_s * others[near]
    done, other = (sum(each) for each in zip(*groups.values(), strict=True))
    ratio = done / other
    half = t_quantile(len(groups) - 1) * statistics.stdev(a - ratio * b for a, b in groups.values()) * math.sqrt(len(groups)) / other
    return ratio - half, ratio, ratio + half


def main() -> int:
    """Compare every workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", choices=[OVERHEAD, SETTLED, *OWN, []], default=[])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in args.workloads or [OVERHEAD, SETTLED, *OWN]:
        if name == OVERHEAD:
            print_overhead()
        elif name == SETTLED:
            compare_settled(args.seconds)
        elif args.one:
            compare(name, args.seconds)
        else:  # a process for each workload
            advice = "ignore:This DataLoader will create:UserWarning"  # torch's, about more workers than CPUs
            subprocess.run([sys.executable, "-W", advice, __file__, name, "--one", "--seconds", str(args.seconds)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
