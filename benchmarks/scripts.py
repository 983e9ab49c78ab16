"""Are the rates of training scripts, run unchanged by feedrate, those of the same scripts edited by hand?

    make test-frameworks ARGS=--collect-only   # makes the environment
    .venv-frameworks/bin/python benchmarks/scripts.py --rounds 2 lightning transformers

For each script in tests/frameworks/scripts: one process of the script under feedrate measures the setting (10 s at
most), and a copy of the script, in which the setting is edited by hand, runs alone and times its own steps for 8 s
after 3 s, without what lies between two epochs (tests/frameworks/scripts/samples.py). Both sides alternate, and the
order changes from round to round. Prints for each script the medians in samples per second, their ratio by hand /
feedrate, the seconds until feedrate took over, and the seconds of a measurement beyond its windows; at the end the
load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "tests" / "frameworks" / "scripts"
BATCH_SIZE = 16
NUM_WORKERS = 4
TIMED_S = 8.0
MAX_TRIAL_S = 10.0


@dataclass(frozen=True)
class Row:
    """A script, and where its number of workers is written."""

    script: str
    edited: str = "num_workers=1"
    arguments: tuple[str, ...] = ()


ROWS = {
    "plain": Row("train_plain.py"),
    "lightning": Row("train_lightning.py"),
    "transformers": Row("train_transformers.py"),
    "accelerate": Row("train_accelerate.py"),
    "webdataset": Row("train_webdataset.py"),
    "torchdata": Row("train_torchdata.py"),
    "datasets": Row("train_datasets.py"),
    "streaming": Row("train_datasets.py", arguments=("streaming",)),
    "timm": Row("train_timm.py"),
    "monai": Row("train_monai.py"),
}


def by_hand(row: Row, folder: Path) -> float:
    """Samples per second of a copy of the script with the setting edited, which times itself."""
    for path in FOLDER.glob("*.py"):
        shutil.copy(path, folder)
    script = folder / row.script
    text = script.read_text()
    assert row.edited in text
    script.write_text(text.replace(row.edited, f"num_workers={NUM_WORKERS}"))
    finished = subprocess.run(
        [sys.executable, str(script), *row.arguments],
        env=os.environ | {"SCRIPT_SECONDS": str(TIMED_S)},
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise SystemExit(f"{row.script}, edited by hand, ended with exit status {finished.returncode}:\n{finished.stderr[-2000:]}")
    found = next(json.loads(line) for line in finished.stdout.splitlines() if line.startswith('{"steps_per_s"'))
    return float(found["steps_per_s"]) * BATCH_SIZE


def by_feedrate(row: Row, folder: Path) -> tuple[float, float, float]:
    """Samples per second of the same setting in the unchanged script, seconds of set-up, and seconds beyond the windows."""
    from feedrate.analysis.estimate import record_rate
    from feedrate.trainables.checking.described import Described
    from feedrate.trainables.config import LoaderConfig
    from feedrate.trainables.measuring.measure_options import MeasureOptions
    from feedrate.trainables.protocol import DescribeRequest, Measured, MeasureRequest, outcome
    from feedrate.trainables.resolve import make_command_ref
    from feedrate.trainables.sandbox.template import Template

    os.chdir(folder)
    template = Template(make_command_ref([sys.executable, str(FOLDER / row.script), *row.arguments]))
    try:
        described = outcome(template.run(DescribeRequest()), Described)
        assert isinstance(described, Described) and described.script is not None, described
        own = described.own
        config = LoaderConfig(**own.to_dict() | {"num_workers": NUM_WORKERS})
        request = MeasureRequest(config=config, options=MeasureOptions(max_trial_s=MAX_TRIAL_S))
        began = time.perf_counter()
        end = outcome(template.run(request, max_s=MAX_TRIAL_S), Measured)
        wall_s = time.perf_counter() - began
    finally:
        template.close()
    assert isinstance(end, Measured), end
    rate = record_rate(end.columns, "steady")
    assert rate is not None
    return rate.sps, described.script.setup_s, wall_s - sum(end.columns["window_duration_s"])


def main() -> None:
    """Measure the scripts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    loads = [os.getloadavg()[0]]
    print(f"{'script':14}{'feedrate/s':>12}{'by hand/s':>12}{'ratio':>8}{'set-up s':>10}{'beyond s':>10}")
    for name in args.names or ROWS:
        row, hand, found = ROWS[name], [], []
        for number in range(args.rounds):
            for side in ("hand", "feedrate") if number % 2 else ("feedrate", "hand"):
                with tempfile.TemporaryDirectory() as folder:
                    os.environ["HF_HOME"] = os.path.join(folder, "hub")
                    os.environ["PYTHONPATH"] = str(Path(sys.prefix) / "vision") if name == "timm" else ""
                    if side == "hand":
                        hand.append(by_hand(row, Path(folder)))
                    else:
                        found.append(by_feedrate(row, Path(folder)))
                os.chdir(FOLDER)
                loads.append(os.getloadavg()[0])
        sps, setup_s, beyond_s = (statistics.median(each) for each in zip(*found, strict=True))
        plain = statistics.median(hand)
        print(f"{name:14}{sps:12,.0f}{plain:12,.0f}{plain / sps:8.3f}{setup_s:10.1f}{beyond_s:10.1f}", flush=True)
    print(f"load of the machine between the runs (1 minute): {min(loads):.1f} to {max(loads):.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
