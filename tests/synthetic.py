"""Records and run folders as a search would write them, with rates that are known exactly."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from feedrate.analysis.best import write_best
from feedrate.analysis.run_folder import RunFolder
from feedrate.analysis.schema import SCHEMA, check_record
from feedrate.search.space.search_space import SearchSpace
from feedrate.trainables.config import LoaderConfig

START_UNIX_S = 1_700_000_000.0

# Every field of a best.json, with figures that are easy to check by hand.
EXAMPLE_BEST: dict[str, Any] = json.loads("""
{"schema": "feedrate/best-config/1",
 "dataloader": {"batch_size": 64, "num_workers": 6, "prefetch_factor": 4, "pin_memory": true, "persistent_workers": true},
 "process": {},
 "throughput": {"samples_per_second": 1843.2, "ci95": [1821.0, 1866.1], "unit": "samples", "per": "rank"},
 "baseline": {"dataloader": {"batch_size": 64, "num_workers": 0}, "samples_per_second": 412.9, "speedup": 4.46, "speedup_ci95": [4.31, 4.62]},
 "ceiling": {"step_only_samples_per_second": 1910.0, "fraction_of_ceiling": 0.965},
 "verdict": "compute-bound", "confirmed": true, "tied_with": [], "best_by_batch_size": {},
 "scope": {"ranks_per_host": 1, "world_size": 1, "cpus_per_rank": 12, "exclusive_host": true, "cache": "warm"},
 "measured_on": {}, "workload": {}, "search": {}}
""")


def example_best(**changed: Any) -> dict[str, Any]:
    """Return a copy of the example answer `EXAMPLE_BEST`, with these top-level fields replaced."""
    return copy.deepcopy(EXAMPLE_BEST) | changed


def record(
    number: int,
    *,
    num_workers: int = 4,
    rate_sps: float = 1000.0,
    batch_size: int | None = 64,
    status: str = "complete",
    num_windows: int = 8,
    noise_fraction: float = 0.01,
    step_only_sps: float | None = None,
    failure_message: str = "the worker was killed",
    **columns: Any,
) -> dict[str, Any]:
    """A record that passes `check_record`; its steady rate is exactly `rate_sps`, whatever the noise of its windows.

    Args:
        number: Optuna trial number; also the seed of the noise and the place in time (20 s a trial).
        num_workers, batch_size: the setting; other LoaderConfig fields may be among `columns`.
        rate_sps: steady rate.
        status: complete, pruned or failed; a failed one holds no windows.
        num_windows: timed windows, of ten batches each.
        noise_fraction: standard deviation of a window's duration.
        step_only_sps: rate of the training step alone; None when it was not measured.
        failure_message: of a failed record.
        columns: any other column of analysis/schema.py, as it shall be recorded.
    """
    fields = {name: columns.pop(name) for name in LoaderConfig.__dataclass_fields__ if name in columns}
    setting = LoaderConfig(num_workers=num_workers, batch_size=batch_size, **fields)
    generator = random.Random(number)
    batches, items = 10, 10 * (batch_size or 32)
    noise = [max(generator.gauss(1.0, noise_fraction), 0.1) for _ in range(num_windows)]
    durations_s = [each / sum(noise) * num_windows * items / rate_sps for each in noise]
    built: dict[str, Any] = {
        "schema": SCHEMA, "study": "synthetic", "number": number, "attempt": 1, "kind": "search", "origin": "sampler",
        **setting.to_dict(),
        "stopped_early": status == "pruned",
        "setup_s": 1.0, "iter_s": 0.05, "first_batch_s": 0.1, "settle_s": 1.0, "boundary_s": 0.0,
        "epoch_samples": 50_000, "unit": "samples",
        "tree_pss_bytes": 500_000_000 + 200_000_000 * num_workers, "device": "cpu", "device_name": "Test CPU",
        "host_id": "host-1", "hostname": "node-1", "num_cpus": 8, "torch_num_threads": 4,
        "started_unix_s": START_UNIX_S + 20.0 * number, "finished_unix_s": START_UNIX_S + 20.0 * number + 15.0,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }  # fmt: skip
    if status == "failed":
        built |= {
            "failure_kind": "worker_killed",
            "failure_phase": "loader",
            "failure_message": failure_message,
            "failure_cause": ["RuntimeError: DataLoader worker was killed"],
            "failure_traceback": "Traceback: ...",
        }
    else:
        built |= {
            "window_duration_s": durations_s,
            "window_num_batches": [batches] * num_windows,
            "window_num_items": [items] * num_windows,
            "window_produced_batches": [batches] * num_windows,
            "window_wait_s": [duration / 4 for duration in durations_s],
            "settled": True,
        }
    if step_only_sps is not None:
        built |= {"step_only_num_items": [6400] * 3, "step_only_duration_s": [6400 / step_only_sps] * 3}
    built |= columns
    check_record(built)
    return built


def search_json(**changed: Any) -> dict[str, Any]:
    """Return the content of a search.json, with these keys replaced or added."""
    asked: dict[str, Any] = {
        "schema": "feedrate/search/1",
        "study": "synthetic",
        "workload": {
            "target": "toy.py:workload", "options": {}, "folder": None, "cwd": None, "name": "toy", "unit": "samples", "epoch_samples": 50_000,
        },
        "objective": "epoch",
        "argv": ["feedrate", "search", "toy.py:workload", "--num-workers", "0..8"],
        "command": "feedrate search toy.py:workload --num-workers 0..8",
        "created_unix_s": START_UNIX_S,
        "finished": False,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "feedrate": "0.1.0"},
        "hardware": {"hostname": "node-1", "cpu_model": "Test CPU", "num_cpus": 8, "gpus": []},
        "space": SearchSpace.default(num_cpus=8, has_accelerator=False).to_json(),
        "baseline": {"num_workers": 0, "batch_size": 64},
        "options": {},
    }  # fmt: skip
    return asked | changed


def write_run(
    folder: Path, records: Iterable[dict[str, Any]], *, best: dict[str, Any] | None = None, **search: Any
) -> Path:
    """A run folder with these records; `search` replaces fields of search.json, `best` becomes best.json."""
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    run.search.write_text(json.dumps(search_json(**{"finished": best is not None} | search)))
    run.trials.write_text("".join(json.dumps(each) + "\n" for each in records))  # NaN may be written, to be read
    if best is not None:
        write_best(run.best, best)
    return folder


def small_run() -> list[dict[str, Any]]:
    """Twelve records: the baseline, two batch sizes, replicates, pruned and failed ones."""
    records = [record(0, num_workers=0, rate_sps=400.0, kind="probe", origin="baseline", step_only_sps=2000.0)]
    records += [record(n, num_workers=n, rate_sps=400.0 + 200 * n, persistent_workers=True) for n in range(1, 6)]
    records += [record(6, num_workers=5, rate_sps=1420.0, persistent_workers=True, kind="confirm", round=1, position=0)]
    records += [record(7, num_workers=2, rate_sps=700.0, batch_size=32, step_only_sps=1500.0)]
    records += [record(8, num_workers=1, rate_sps=300.0, batch_size=32, status="pruned", num_windows=1)]
    records += [record(9, num_workers=1, rate_sps=300.0, status="pruned", num_windows=2, pin_memory=True)]
    return [*records, record(10, num_workers=8, status="failed"), record(11, num_workers=7, status="failed")]


def dtypes_here(dtypes):
    """Those dtypes as this pandas names them: before version 3 a column of text is one of objects."""
    return {name: str(pd.Series([], dtype=dtype).dtype) for name, dtype in dtypes.items()}
