"""Do the predictions of `feedrate show --table what-if` come true? Each change that can be made here is made, and searched again.

    python benchmarks/what_if.py --time-budget 90s

Searches each workload as it is, then once more for each change: half of the CPUs (by affinity), storage twice or half as fast
(another latency), loading that does not wait, decoding at half the cost. Prints the rate that the first search predicted for the
change, the best rate that the second search measured, and the error; at the end the median error, and how many measured
rates lie in the predicted interval. `mixed` computes for a while and waits for a while for each sample, both of which can be
changed. Two cores or more; nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from feedrate.trainables import Workload
from feedrate.trainables.bundled.objects import objects

CPU_S, WAIT_S, LATENCY_S = "WHAT_IF_CPU_S", "WHAT_IF_WAIT_S", "WHAT_IF_LATENCY_S"


class Mixed(Dataset[Any]):
    """Samples float32 (64,) that take `cpu_s` of CPU time and `wait_s` of waiting."""

    def __init__(self, cpu_s: float, wait_s: float) -> None:
        self.cpu_s, self.wait_s = cpu_s, wait_s

    def __len__(self) -> int:
        return 50_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        until = time.thread_time() + self.cpu_s
        while time.thread_time() < until:
            pass
        time.sleep(self.wait_s)
        return torch.full((64,), float(index % 7)), index % 2


def mixed() -> Workload:
    """The workload of the environment's CPU_S and WAIT_S."""
    return Workload(
        name="mixed",
        dataset=lambda: Mixed(float(os.environ[CPU_S]), float(os.environ[WAIT_S])),
        model=lambda: nn.Linear(64, 2),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    )


def distant() -> Workload:
    """The bundled workload `objects` with the latency of the environment."""
    return objects(latency_s=float(os.environ[LATENCY_S]))


@dataclass(frozen=True)
class Case:
    """A workload, the variables that it reads, and for each change the variables that make it; None is half of the CPUs."""

    target: str
    changes: dict[str, dict[str, str] | None]
    now: dict[str, str] = field(default_factory=dict)


HERE = Path(__file__).resolve()
CASES = {
    "images": Case("images", {"cpus_half": None}),
    "objects": Case(
        f"{HERE}:distant",
        {"storage_twice_as_fast": {LATENCY_S: "0.02"}, "storage_half_as_fast": {LATENCY_S: "0.08"}, "cpus_half": None},
        {LATENCY_S: "0.04"},
    ),
    "mixed": Case(
        f"{HERE}:mixed",
        {
            "storage_twice_as_fast": {WAIT_S: "0.01"},
            "storage_half_as_fast": {WAIT_S: "0.04"},
            "data_in_memory": {WAIT_S: "0"},
            "decoding_half": {CPU_S: "0.001"},
            "cpus_half": None,
        },
        {CPU_S: "0.002", WAIT_S: "0.02"},
    ),
}


def searched(case: Case, folder: Path, budget: str, changed: dict[str, str] | None) -> dict[str, Any]:
    """The best.json of a search with these variables; None is a search on half of the CPUs."""
    command = [
        str(Path(sys.executable).parent / "feedrate"), "search", case.target, "--batch-size", "32", "--num-workers", "0..16",
        "--max-trial-s", "12", "--time-budget", budget, "--out", str(folder),
    ]  # fmt: skip
    cpus = sorted(os.sched_getaffinity(0))
    if changed is None:
        command = ["taskset", "-c", ",".join(map(str, cpus[: len(cpus) // 2])), *command]
    environment = os.environ | case.now | (changed or {})
    finished = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit status {finished.returncode}:\n{finished.stderr[-2000:]}")
    found: dict[str, Any] = json.loads((folder / "best.json").read_text())
    return found


def main() -> None:
    """Search the cases that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(CASES)} (default: all)")
    parser.add_argument("--time-budget", default="90s", metavar="DURATION", help="of each search, its rounds included (default 90s)")
    args = parser.parse_args()
    errors, inside = [], 0
    print(f"{'workload':10}{'change':24}{'now/s':>9}{'predicted/s':>22}{'measured/s':>12}{'error':>8}")
    for name in args.names or CASES:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as temporary:
            before = searched(case, Path(temporary) / "now", args.time_budget, {})
            predicted = {each["name"]: each for each in before["what_if"]["predicted"]}
            now_sps = before["throughput"]["samples_per_second"]
            if not predicted:
                print(f"{name:10}{now_sps:33,.0f}  nothing is predicted: {before['what_if']['why_none']}")
                continue
            for change, changed in case.changes.items():
                after = searched(case, Path(temporary) / change, args.time_budget, changed)
                if change not in predicted:
                    print(f"{name:10}{change:24}{now_sps:9,.0f}{'not predicted':>22}{after['throughput']['samples_per_second']:12,.0f}", flush=True)
                    continue
                expected, sps = predicted[change], after["throughput"]["samples_per_second"]
                low, high = expected["ci95"]
                errors.append(abs(expected["samples_per_second"] / sps - 1))
                inside += low <= sps <= high
                interval = f"{expected['samples_per_second']:,.0f} ({low:,.0f}-{high:,.0f})"
                print(f"{name:10}{change:24}{now_sps:9,.0f}{interval:>22}{sps:12,.0f}{errors[-1]:8.1%}", flush=True)
    if errors:
        print(f"median error {statistics.median(errors):.1%}; {inside} of {len(errors)} measured rates lie in the predicted interval")


if __name__ == "__main__":
    main()
