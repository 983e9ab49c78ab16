"""How soon does a search have a good answer? best.json is read while `feedrate search` runs, and plain loops judge what it said when.

    python benchmarks/first_answer.py images objects table

For each bundled workload: `feedrate search WORKLOAD` with its default budget, Ray's start included. Each setting (`dataloader`) that best.json names meanwhile is
noted, with the seconds since the command began; feedrate writes the file at most every ten seconds. Then all these settings are trained by plain_train.py's plain PyTorch loop in interleaved rounds, in fresh
processes. Prints, for each of them, when it became the answer and its rate as a fraction of the fastest one's, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from live import plain
from live_training import interval

POLL_S = 0.2


def answers(name: str, folder: Path) -> tuple[list[tuple[float, dict[str, Any]]], float]:
    """Return each setting that a search named in best.json, with the seconds after which it did, and how long the search took."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "feedrate.search.cli.main", "search", name, "--out", str(folder / "run")]
    path, found = folder / "run" / "best.json", []
    with (folder / "output.txt").open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as search:
        while search.poll() is None:
            now_s = time.monotonic() - begun
            kwargs = json.loads(path.read_text())["dataloader"] if path.exists() else None
            if kwargs is not None and (not found or found[-1][1] != kwargs):
                found.append((now_s, kwargs))
            time.sleep(POLL_S)
    taken_s = time.monotonic() - begun
    if search.returncode:
        raise SystemExit(f"feedrate search {name} failed:\n{(folder / 'output.txt').read_text()}")
    if (kwargs := json.loads(path.read_text())["dataloader"]) != found[-1][1]:
        found.append((taken_s, kwargs))
    return found, taken_s


def judge(name: str, settings: list[dict[str, Any]], rounds: int, seconds: float) -> list[list[float]]:
    """Return the rates of each setting: in each round every one of them twice, in both orders."""
    rates: list[list[float]] = [[] for _ in settings]
    for _ in range(rounds):
        for number in [*range(len(settings)), *reversed(range(len(settings)))]:
            rates[number].append(plain(name, settings[number], seconds))
    return rates


def main() -> None:
    """Search and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", choices=("images", "objects", "table"))
    parser.add_argument("--rounds", type=int, default=2, help="two measurements of each setting in each round")
    parser.add_argument("--seconds", type=float, default=8.0, help="timed part of one plain loop")
    args = parser.parse_args()
    for name in args.workloads:
        with tempfile.TemporaryDirectory() as folder:
            found, taken_s = answers(name, Path(folder))
        settings = [kwargs for number, (_, kwargs) in enumerate(found) if kwargs not in [each for _, each in found[:number]]]
        rates = judge(name, settings, args.rounds, args.seconds)
        best = max(rates, key=statistics.mean)
        print(f"{name}: the search took {taken_s:.0f} s; the fastest of its answers trains {statistics.mean(best):,.0f} samples/s", flush=True)
        for at_s, kwargs in found:
            mine = rates[settings.index(kwargs)]
            low, middle, high = interval([math.log(one / other) for one, other in zip(mine, best, strict=True)])
            print(f"  {at_s:6.1f} s  {middle:6.1%} of it [{low:.1%}-{high:.1%}]  {kwargs}", flush=True)


if __name__ == "__main__":
    main()
