"""What one more setting of a training script costs, beside one more setting of a workload in a forked child.

    python benchmarks/script_cost.py --settings 8

The same dataset, model and loader are measured as a command (script_train.py, whose process serves one setting after the other) and
as a workload (each setting in a forked child of its own), in turn, 3 s each. Prints the medians of the wall time of a setting and of
its overhead, which is what is neither starting workers, settling, windows nor epoch boundaries, and their difference. Exit code 1
if the script's overhead is larger by more than 0.2 s.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from script_train import Waves
from torch import nn

from feedrate.trainables import Workload
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import DescribeRequest, Measured, MeasureRequest, outcome
from feedrate.trainables.resolve import make_command_ref, make_ref
from feedrate.trainables.sandbox.template import Template

HERE = Path(__file__).resolve()
MOST_MORE_S = 0.2


def waves() -> Workload:
    """The training of script_train.py as a workload."""
    return Workload(
        name="waves",
        dataset=Waves,
        model=lambda: nn.Sequential(nn.Linear(4097, 64), nn.ReLU(), nn.Linear(64, 7)),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    )


def cost(template: Template, config: LoaderConfig) -> tuple[float, float]:
    """Wall time and overhead of measuring one setting."""
    begin = time.perf_counter()
    end: Any = outcome(template.run(MeasureRequest(config=config, options=MeasureOptions(max_trial_s=3.0, measure_step=False)), max_s=3.0), Measured)
    wall_s = time.perf_counter() - begin
    assert isinstance(end, Measured), end
    columns = end.columns
    known = columns["iter_s"] + columns["first_batch_s"] + columns["settle_s"] + sum(columns["window_duration_s"]) + sum(columns["epoch_duration_s"] or [])
    return wall_s, wall_s - known


def main() -> int:
    """Measure both sides in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=8)
    args = parser.parse_args()
    sides = {
        "script": Template(make_command_ref([sys.executable, str(HERE.with_name("script_train.py"))])),
        "workload": Template(make_ref(f"{HERE}:waves")),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    try:
        for template in sides.values():
            outcome(template.run(DescribeRequest()), object)
        for number in range(args.settings + 1):
            config = LoaderConfig(num_workers=1 + number % 2, batch_size=32, prefetch_factor=2 + number)
            for name, template in sides.items():
                costs = cost(template, config)
                if number:  # the first setting also starts processes
                    found[name].append(costs)
    finally:
        for template in sides.values():
            template.close()
    medians = {name: [statistics.median(each) for each in zip(*costs, strict=True)] for name, costs in found.items()}
    for name, (wall_s, overhead_s) in medians.items():
        print(f"{name:10} {wall_s:6.2f} s a setting, overhead {overhead_s:5.2f} s")
    more_s = medians["script"][1] - medians["workload"][1]
    print(f"the script's overhead is {more_s:+.2f} s")
    return int(more_s > MOST_MORE_S)


if __name__ == "__main__":
    sys.exit(main())
