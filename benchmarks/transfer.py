"""Do measured rates transfer? Each setting is measured by a trial, exported, and rerun in a plain PyTorch script.

    python benchmarks/transfer.py --rounds 3

Fifteen settings of four workloads and a training script, in interleaved rounds, fresh processes: a trial (20 s at most, as in a
search) and a process that knows nothing but the exported `dataloader` object: `DataLoader(dataset, **dataloader)` and a loop. The
script (script_train.py) is measured as it is, and its other side is the script with the setting put into its loader by hand. Prints
each setting's ratio plain / trial (medians over the rounds) and the median ratio; exit code 1 when that is outside 0.97
to 1.03.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "images": [
        {"batch_size": 32, "num_workers": 0},
        {"batch_size": 32, "num_workers": 2, "persistent_workers": True},
        {"batch_size": 64, "num_workers": 4, "prefetch_factor": 4},
    ],
    "objects": [
        {"batch_size": 32, "num_workers": 4, "prefetch_factor": 2},
        {"batch_size": 32, "num_workers": 12, "prefetch_factor": 4, "persistent_workers": True},
        {"batch_size": 64, "num_workers": 20, "prefetch_factor": 2},
    ],
    "table": [
        {"batch_size": 128, "num_workers": 0},
        {"batch_size": 128, "num_workers": 1, "prefetch_factor": 8},
        {"batch_size": 512, "num_workers": 2, "prefetch_factor": 2},
    ],
    "ragged": [
        {"batch_size": 16, "num_workers": 1},
        {"batch_size": 16, "num_workers": 4, "prefetch_factor": 4},
        {"batch_size": 32, "num_workers": 6, "multiprocessing_context": "forkserver"},
    ],
    "script": [
        {"batch_size": 32, "num_workers": 0},
        {"batch_size": 32, "num_workers": 2, "persistent_workers": True},
        {"batch_size": 64, "num_workers": 4, "prefetch_factor": 4},
    ],
}
SCRIPT = Path(__file__).with_name("script_train.py")
OWN_SETTING = "batch_size=32, num_workers=1"
"""In the script's call of DataLoader."""
LOW, HIGH = 0.97, 1.03
DISCARD_S, TIMED_S = 3.0, 8.0


def plain(name: str, dataloader: dict[str, Any]) -> float:
    """Items per second of a loop over `DataLoader(dataset, **dataloader)`, whole rounds of the workers after 3 s."""
    if name == "script":
        return edited(dataloader)
    import torch
    from torch.utils.data import DataLoader

    from feedrate.trainables.step import StepContext, count_items

    torch.manual_seed(time.time_ns() % 2**31)
    workload = _workload(name)
    step = workload.make_step(StepContext(device=torch.device("cpu"), batch_size=None))
    if workload.is_short:
        loader = DataLoader(workload.dataset, shuffle=True, collate_fn=workload.collate_fn, **dataloader)
    else:
        loader = workload.make_loader(**dataloader)
    begun, times, items = time.perf_counter(), [], []
    while not times or times[-1] < begun + DISCARD_S + TIMED_S:
        for batch in loader:
            trained = count_items(batch, step(batch))
            times.append(time.perf_counter())
            items.append(trained)
            if times[-1] > begun + DISCARD_S + TIMED_S:
                break
    first = next(index for index, at in enumerate(times) if at > begun + DISCARD_S)
    cycle = max(loader.num_workers, 1)
    last = first + (len(times) - 1 - first) // cycle * cycle
    return sum(items[first + 1 : last + 1]) / (times[last] - times[first])


def edited(dataloader: dict[str, Any]) -> float:
    """Samples per second that the script itself prints, with this setting in its loader, whole rounds of the workers after 3 s."""
    text = SCRIPT.read_text()
    assert text.count(OWN_SETTING) == 1
    setting = ", ".join(f"{key}={value!r}" for key, value in dataloader.items())
    times: list[float] = []
    samples: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, SCRIPT.name)
        copy.write_text(text.replace(OWN_SETTING, setting))
        with subprocess.Popen([sys.executable, str(copy)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                at, _, count, _ = line.split()
                times.append(float(at))
                samples.append(int(count))
                if times[-1] > DISCARD_S + TIMED_S:
                    process.terminate()
                    break
    return rate_of(times, samples, dataloader["num_workers"])


def rate_of(times: list[float], samples: list[int], num_workers: int) -> float:
    """Samples per second between the batches of whole rounds of the workers, after the first 3 s."""
    first = next(index for index, at in enumerate(times) if at > DISCARD_S)
    cycle = max(num_workers, 1)
    last = first + (len(times) - 1 - first) // cycle * cycle
    return (samples[last] - samples[first]) / (times[last] - times[first])


def _workload(name: str) -> Any:
    from feedrate.trainables.resolve import load

    return load(_ref(name))


def _ref(name: str) -> Any:
    from feedrate.trainables.resolve import BUNDLED, make_command_ref, make_ref

    if name == "script":
        return make_command_ref([sys.executable, str(SCRIPT)])
    return make_ref(name if name in BUNDLED else f"{Path(__file__).with_name('hard_workloads.py')}:{name}")


def trial(name: str, setting: dict[str, Any], seed: int) -> tuple[float, dict[str, Any]]:
    """Items per second of a trial, and what would be exported.

    Of `table` many epochs fit into a plain run, so that its epoch-amortised rate is compared; of the others none does.
    """
    from feedrate.analysis.estimate import record_rate
    from feedrate.trainables.config import LoaderConfig
    from feedrate.trainables.measuring.measure_options import MeasureOptions
    from feedrate.trainables.protocol import Failed, Measured, MeasureRequest, outcome
    from feedrate.trainables.sandbox.template import Template

    config = LoaderConfig(**setting)
    template = Template(_ref(name), show_output=name != "script")
    objective = "epoch" if name == "table" else "steady"
    options = MeasureOptions(seed=seed, max_trial_s=20.0, objective=objective)
    try:
        end = outcome(template.run(MeasureRequest(config=config, options=options), max_s=20), Measured)
    finally:
        template.close()
    if isinstance(end, Failed):
        raise SystemExit(f"{name} {config.short()}: the trial failed: {end.failure.message}")
    rate = record_rate(end.columns, objective)
    assert rate is not None
    return rate.sps, config.to_kwargs()


def main() -> int:
    """Both sides of every setting, or one plain run with --plain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=SETTINGS, help="one workload instead of all")
    parser.add_argument("--plain", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        print(plain(args.plain[0], json.loads(args.plain[1])))
        return 0
    rates: dict[tuple[str, int], dict[str, list[float]]] = {}
    for number in range(args.rounds):
        for name, settings in SETTINGS.items() if args.only is None else [(args.only, SETTINGS[args.only])]:
            for index, setting in enumerate(settings):
                sides = rates.setdefault((name, index), {"trial": [], "plain": []})
                exported: dict[str, Any] = {}
                for side in ("trial", "plain") if number % 2 == 0 else ("plain", "trial"):
                    if side == "trial":
                        sps, exported = trial(name, setting, seed=7000 + number)
                    else:
                        if not exported:
                            from feedrate.trainables.config import LoaderConfig

                            exported = LoaderConfig(**setting).to_kwargs()
                        command = [sys.executable, "-W", "ignore", __file__, "--plain", name, json.dumps(exported)]
                        sps = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
                    sides[side].append(sps)
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    ratios = []
    print(f"{'workload':10}{'setting':>58}{'trial':>12}{'plain':>12}{'plain/trial':>13}")
    for (name, index), sides in rates.items():
        measured, plainly = (statistics.median(sides[side]) for side in ("trial", "plain"))
        ratios.append(plainly / measured)
        text = " ".join(f"{key}={value}" for key, value in SETTINGS[name][index].items())
        print(f"{name:10}{text:>58.58}{measured:12,.1f}{plainly:12,.1f}{ratios[-1]:13.3f}")
    median = statistics.median(ratios)
    print(f"median ratio of {len(ratios)} settings: {median:.3f} (smallest {min(ratios):.3f}, largest {max(ratios):.3f})")
    return 0 if LOW <= median <= HIGH else 1


if __name__ == "__main__":
    sys.exit(main())
