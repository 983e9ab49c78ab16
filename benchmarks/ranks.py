"""Is the rate of a training with several ranks true? Compares `feedrate measure -- torchrun ...` with the same script timed by barriers.

    python benchmarks/ranks.py --ranks 2 --seconds 6 --rounds 3

For each workload below, this script trains in several ranks in two ways, in turn: with a stopwatch between two barriers around
the timed steps, and under `feedrate measure`. Both have the same number of loader workers. Prints both rates, their ratio, and what two naive ways of
adding up would say: the sum of the rates that each rank sees in next(loader) and its step without waiting for the others
at the end, and one rank's rate times the number of ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

WORKLOADS = {
    "waits": "each sample waits 3 ms",
    "decodes": "each sample needs CPU time",
    "step": "the step is slower than the loader",
    "slow-rank": "the samples of the last rank wait three times as long, and the ranks exchange nothing",
}
BATCH_SIZE = 16
WARM_S = 2.0


class Samples(Dataset[Any]):
    """Samples of one of the workloads, for one rank."""

    def __init__(self, name: str, is_last: bool) -> None:
        self.name, self.wait_s = name, 0.003 * {"waits": 1, "slow-rank": 3 if is_last else 1}.get(name, 0)

    def __len__(self) -> int:
        return 50_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(self.wait_s)
        signal = torch.sin(torch.arange(1024) * (index % 7 + 1) / 50)
        for _ in range(20 if self.name == "decodes" else 0):
            signal = torch.fft.ifft(torch.fft.fft(signal)).real
        return signal, index % 7


def train(name: str, num_workers: int, seconds: float | None) -> None:
    """Train in this rank; with `seconds`, time that long between barriers and print the rates, otherwise train on."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model: nn.Module = nn.Sequential(nn.Linear(1024, 256), nn.ReLU(), *(nn.Linear(256, 256) for _ in range(12 if name == "step" else 0)), nn.Linear(256, 7))
    if name != "slow-rank":
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = Samples(name, rank == world_size - 1)
    sampler: DistributedSampler[Any] = DistributedSampler(data)
    loader = DataLoader(data, batch_size=BATCH_SIZE, sampler=sampler, num_workers=num_workers)
    watch = None if seconds is None else Stopwatch(seconds)
    for _ in range(1000):
        for inputs, target in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), target).backward()
            optimizer.step()
            if watch is not None and watch.is_over():
                watch.show()
                return


class Stopwatch:
    """Times steps between two barriers. All ranks agree on the step at which the time is over."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.num_steps = seconds, 0
        self.since_s = time.perf_counter()
        self.is_timing = False

    def is_over(self) -> bool:
        """Count a step, and return whether it was the last one."""
        self.num_steps += 1
        if self.num_steps % 10:
            return False
        elapsed = torch.tensor([time.perf_counter() - self.since_s])
        own_s = float(elapsed)
        dist.all_reduce(elapsed, dist.ReduceOp.MIN)
        if not self.is_timing:
            if float(elapsed) > WARM_S:
                dist.barrier()
                self.is_timing, self.num_steps, self.since_s = True, 0, time.perf_counter()
            return False
        self.own_s = own_s
        return float(elapsed) > self.seconds

    def show(self) -> None:
        """Print the rates of the timed steps, in rank 0."""
        dist.barrier()
        seconds = time.perf_counter() - self.since_s
        items = torch.tensor([float(self.num_steps * BATCH_SIZE)])
        local = items / self.own_s
        first = float(local)
        dist.all_reduce(items)
        dist.all_reduce(local)
        if dist.get_rank() == 0:
            rates = {"world": float(items) / seconds, "sum": float(local), "times": first * dist.get_world_size()}
            print(json.dumps(rates), flush=True)
        dist.destroy_process_group()


def command(num_ranks: int, *words: object) -> list[str]:
    """Return the command that starts this script in several ranks."""
    return [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", str(num_ranks), __file__, "--train", *map(str, words)]


def last_object(text: str) -> dict[str, Any]:
    """Return the last JSON object in an output."""
    return dict(json.loads(next(line for line in reversed(text.splitlines()) if line.startswith("{"))))


def by_barriers(num_ranks: int, name: str, num_workers: int, seconds: float) -> dict[str, float]:
    """Return the rates that the script itself prints."""
    done = subprocess.run(command(num_ranks, name, num_workers, seconds), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return last_object(done.stdout)


def measured(num_ranks: int, name: str, num_workers: int, seconds: float) -> dict[str, Any]:
    """Return the answer of `feedrate measure`."""
    options = ["--num-workers", str(num_workers), "--objective", "steady", "--max-trial-s", str(round(seconds) + 2), "--json"]
    words = ["feedrate", "measure", *options, "--", *command(num_ranks, name, num_workers)]
    done = subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Run as the docstring of this file says, or train in one rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("names", nargs="*", default=list(WORKLOADS))
    args = parser.parse_args()
    if args.train:
        name, num_workers, *seconds = args.train
        train(name, int(num_workers), float(seconds[0]) if seconds else None)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in args.names:
        print(f"{name}: {WORKLOADS[name]}; {args.ranks} ranks, {args.num_workers} workers each", flush=True)
        ratios = []
        for _ in range(args.rounds):
            plain = by_barriers(args.ranks, name, args.num_workers, args.seconds)
            found = measured(args.ranks, name, args.num_workers, args.seconds)
            ratios.append(found["throughput"] / plain["world"])
            busy = found["measurement"]["foreign_cpu_fraction"]
            print(
                f"  barriers {plain['world']:,.0f}/s, feedrate {found['throughput']:,.0f}/s, ratio {ratios[-1]:.3f}; naive: sum of ranks {plain['sum']:,.0f}/s, "
                f"rank 0 times {args.ranks} {plain['times']:,.0f}/s; others used {busy:.0%} of the CPUs",
                flush=True,
            )
        print(f"  median ratio {statistics.median(ratios):.3f}", flush=True)


if __name__ == "__main__":
    main()
