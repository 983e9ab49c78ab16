"""Does a best.json hold outside feedrate? Trains the bundled workload in a plain PyTorch loop, default against best.

    python benchmarks/plain_train.py images feedrate-runs/images-1/best.json --rounds 3

Each measurement is a fresh process of this file that imports the bundled dataset and model, torch, and nothing else of
feedrate; no Ray. Rounds are interleaved (ABBA), so that a drifting machine favours neither side. Prints each rate and
the ratio of the medians; exit code 1 when the ratio is below 0.97.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

LEAST_RATIO = 0.97


def train(name: str, kwargs: dict[str, object], seconds: float) -> float:
    """Samples per second of a plain training loop, between 3 s after its first batch and `seconds` later.

    A full queue of ready batches at the start of the window would flatter the loader; here the loop trains from the
    first batch on, so that no queue builds up that the loader cannot sustain. The window is whole rounds of the workers, which
    finish their batches together where samples are waited for: 6 s of rounds of 10 s can read anything.
    """
    import torch
    from torch.utils.data import DataLoader

    if name == "table":
        from feedrate.trainables.bundled.table import table as make
    elif name == "images":
        from feedrate.trainables.bundled.images import images as make  # type: ignore[assignment]
    else:
        from feedrate.trainables.bundled.objects import objects as make  # type: ignore[assignment]
    from feedrate.trainables.step import StepContext

    workload = make()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = workload.make_step(StepContext(device=device, batch_size=None))
    loader = DataLoader(workload.dataset, shuffle=True, collate_fn=workload.collate_fn, **kwargs)  # type: ignore[arg-type]
    begun = None
    timed_from = 0.0  # the end of the first batch where the second one takes longer than 3 s
    samples = batches = 0
    round_of = max(int(str(kwargs.get("num_workers", 0))), 1)
    while True:
        for batch in loader:
            step(batch)
            now = time.perf_counter()
            if begun is None:
                begun = timed_from = now
            elif now - begun < 3:
                timed_from = now
            else:
                samples += len(batch[1])
                batches += 1
                if now - timed_from > seconds and batches % round_of == 0:
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    return samples / (time.perf_counter() - timed_from)


def main() -> int:
    """Interleaved rounds; 0 when the best setting holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=("images", "objects", "table"))
    parser.add_argument("best", help="best.json")
    parser.add_argument("--rounds", type=int, default=2, help="ABBA rounds, two measurements of each side a round")
    parser.add_argument("--seconds", type=float, default=8.0, help="timed part of one measurement")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once is not None:
        print(train(args.workload, json.loads(args.once), args.seconds))
        return 0
    with open(args.best) as stream:
        best = json.load(stream)["dataloader"]
    default = {"batch_size": best["batch_size"]}
    rates: dict[str, list[float]] = {"default": [], "best": []}
    for number in range(args.rounds):
        for side in ("default", "best", "best", "default"):
            kwargs = best if side == "best" else default
            command = [sys.executable, __file__, args.workload, args.best, "--seconds", str(args.seconds), "--once", json.dumps(kwargs)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rates[side].append(float(output.split()[-1]))
            print(f"round {number + 1}  {side:8} {rates[side][-1]:12,.1f} samples/s", flush=True)
    medians = {side: statistics.median(values) for side, values in rates.items()}
    ratio = medians["best"] / medians["default"]
    print(f"{args.workload}: default {medians['default']:,.1f}, best {medians['best']:,.1f} samples/s with {best}: {ratio:.2f}x")
    return 0 if ratio >= LEAST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
