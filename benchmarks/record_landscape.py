"""Measures a grid of settings of one workload, three times each, for search_efficiency.py.

    python benchmarks/record_landscape.py table --out benchmarks/landscapes/table.parquet

Every setting is a trial in a fresh child, as in a search; all trials are in one random order, so that a drift of the
machine falls on all settings alike. Nothing else may run meanwhile. Each trial is appended to FILE.jsonl: the same command
goes on where it was stopped. About 80 settings; 30 minutes for `table` on the two-core machine of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pandas as pd

from feedrate.analysis.estimate import record_rate, record_steady, step_only_sps
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import Failed, Measured, MeasureRequest, outcome
from feedrate.trainables.resolve import make_ref
from feedrate.trainables.sandbox.template import Template

WORKERS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
BATCH_SIZES = (32, 64, 128)
PREFETCH = (1, 2, 4)


def grid(workers: list[int], batch_sizes: list[int], prefetch: list[int]) -> list[LoaderConfig]:
    """The settings, each once."""
    return [
        LoaderConfig(num_workers=number, batch_size=size, prefetch_factor=ahead, persistent_workers=number > 0)
        for size in batch_sizes
        for number in workers
        for ahead in (prefetch if number else (None,))
    ]


def trial(template: Template, config: LoaderConfig, *, seed: int, measure_step: bool, max_trial_s: float) -> dict[str, Any]:
    """One row; `failure` where there is no rate."""
    options = MeasureOptions(seed=seed, max_trial_s=max_trial_s, measure_step=measure_step)
    begun = time.perf_counter()
    end = outcome(template.run(MeasureRequest(config=config, options=options), max_s=max_trial_s), Measured)
    row = config.to_dict() | {"spent_s": time.perf_counter() - begun, "seed": seed, "finished_unix_s": time.time()}
    if isinstance(end, Failed):
        return row | {"failure": f"{end.failure.kind}: {end.failure.message}"}
    columns = end.columns
    rate, steady = record_rate(columns), record_steady(columns)
    assert rate is not None and steady is not None
    return row | {
        "sps": rate.sps,
        "low_sps": rate.low_sps,
        "high_sps": rate.high_sps,
        "step_only_sps": step_only_sps(columns),
        "cpu_item_s": columns["own_cpu_fraction"] * columns["num_cpus"] / steady.sps if columns.get("own_cpu_fraction") else None,
        "num_cpus": columns["num_cpus"],
        **{name: columns.get(name) for name in ("load_item_s", "load_cpu_item_s", "load_delay_item_s", "collate_item_s", "step_only_cpus")},
        "timed_s": sum(columns["window_duration_s"]),
        "num_windows": len(columns["window_duration_s"]),
        "foreign_cpu_fraction": columns.get("foreign_cpu_fraction"),
        "tree_pss_bytes": columns.get("tree_pss_bytes"),
    }


def main() -> None:
    """Measure what is missing, and write the Parquet file anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", metavar="WORKLOAD")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a Parquet file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-trial-s", type=float, default=20.0)
    parser.add_argument("--num-workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--batch-size", type=int, nargs="+", default=list(BATCH_SIZES))
    parser.add_argument("--prefetch-factor", type=int, nargs="+", default=list(PREFETCH))
    parser.add_argument("--model", help="of images and objects")
    parser.add_argument("--latency-s", type=float, help="of objects")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    journal = args.out.with_suffix(".jsonl")
    done = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    planned = [(config, repeat) for config in grid(args.num_workers, args.batch_size, args.prefetch_factor) for repeat in range(args.repeats)]
    random.Random(0).shuffle(planned)
    known = {(LoaderConfig.from_dict(row), row["repeat"]) for row in done}
    stepped = {row["batch_size"]: 1 for row in done if row.get("step_only_sps")}
    asked = {"model": args.model, "latency_s": args.latency_s}
    ref = make_ref(args.workload, {name: value for name, value in asked.items() if value is not None})
    template = Template(ref, show_output=True)
    try:
        for index, (config, repeat) in enumerate(planned):
            if (config, repeat) in known:
                continue
            measure_step = stepped.get(config.batch_size or 0, 0) < args.repeats
            row = trial(template, config, seed=index, measure_step=measure_step, max_trial_s=args.max_trial_s) | {"repeat": repeat}
            stepped[config.batch_size or 0] = stepped.get(config.batch_size or 0, 0) + measure_step
            with journal.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            done.append(row)
            told = row.get("failure") or f"{row['sps']:,.0f}/s"
            print(f"{len(done)}/{len(planned)} {config.short()} {told} ({row['spent_s']:.1f} s)", flush=True)
    finally:
        template.close()
    rows = pd.DataFrame([row for row in done if "failure" not in row])
    rows.to_parquet(args.out, index=False)
    print(f"{args.out}: {len(rows)} measurements of {len(set(map(LoaderConfig.from_dict, done)))} settings, {sum('failure' in row for row in done)} failed")


if __name__ == "__main__":
    main()
