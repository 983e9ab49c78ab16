"""What a search costs its driver as trials grow in number, with trials that do nothing.

    python benchmarks/engine_scale.py                            3,000 trials on a real Ray with 8 slots
    python benchmarks/engine_scale.py --without-engine 20000     suggest and complete alone, no Ray

Session, study (a journal file), records and, in the first form, Ray Tune with our searcher and scheduler are the real ones; a trial's
measurement is made up and takes no time. At each mark: wall and processor time of the driver for each of the trials
since the last mark, its memory, and the writes to the study's storage. What a cluster can do follows: docs/scale.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from ray import tune
from rich.console import Console

from feedrate.analysis.run_folder import RunFolder
from feedrate.search.engine import tuner
from feedrate.search.engine.ray_cluster import _QUIET, _WORKERS
from feedrate.search.engine.reservation import Placement
from feedrate.search.options import SearchOptions
from feedrate.search.record import SearchedWorkload, SearchRecord
from feedrate.search.session.display import Display
from feedrate.search.session.session import Session
from feedrate.search.session.trial_request import TrialRequest
from feedrate.search.space.domains import to_tune
from feedrate.search.space.search_space import Choice, Range, SearchSpace
from feedrate.search.study.brain import Brain
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.resolve import WorkloadRef, make_ref

SLOTS = 8
MARKS = (100, 300, 1_000, 3_000, 10_000, 20_000)
NUM_WINDOWS = 13


def columns_of(config: dict[str, Any], number: int) -> dict[str, Any]:
    """A made-up measurement: more workers help up to 40, with noise."""
    rng, size = random.Random(number), config["batch_size"]
    sps = 1000.0 * min(config["num_workers"] + 1, 40) * (1 + 0.01 * rng.gauss(0, 1))
    return {
        "setup_s": 1.0, "iter_s": 0.1, "first_batch_s": 0.1, "settle_s": 0.5, "settled": True, "boundary_s": 0.1,
        "window_duration_s": [rng.gauss(10 * size / sps, 0.1 * size / sps) for _ in range(NUM_WINDOWS)],
        "window_num_batches": [10] * NUM_WINDOWS, "window_num_items": [10 * size] * NUM_WINDOWS,
        "window_produced_batches": [10] * NUM_WINDOWS, "window_wait_s": [0.0] * NUM_WINDOWS,
        "tree_pss_bytes": 300_000_000, "num_cpus": 8, "unit": "samples", "device": "cpu", "host_id": "h", "hostname": "h",
    }  # fmt: skip


class NoOp(tune.Trainable):
    """Says at once what a supervisor says at the end of a trial."""

    def setup(self, config: dict[str, Any]) -> None:
        self.request = json.loads(config["request"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        columns = columns_of(self.request["configs"][0], self.request["options"]["seed"])
        return {
            "columns": json.dumps(columns), "failure": "null", "position": 0, "waiting": "", "proceeds": False,
            "refusal": "", "node_id": "", "throughput_sps": 0.0, "done": True,
        }  # fmt: skip


class Meter:
    """Prints a line at each mark."""

    def __init__(self, journal: Path) -> None:
        self.journal, self.process, self.num_trials = journal, psutil.Process(), 0
        self._last = (0, time.perf_counter(), self._cpu_s())
        print(f"{'trials':>8}{'wall ms':>10}{'cpu ms':>9}{'RSS MB':>9}{'writes':>9}{'journal MB':>12}   (ms: of one trial, since the last line)")

    def _cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def completed(self) -> None:
        """One more trial is over."""
        self.num_trials += 1
        if self.num_trials not in MARKS:
            return
        count, wall_s, cpu_s = self._last
        self._last = (self.num_trials, time.perf_counter(), self._cpu_s())
        per_trial = [1000 * (now - then) / (self.num_trials - count) for now, then in ((self._last[1], wall_s), (self._last[2], cpu_s))]
        with self.journal.open("rb") as stream:
            writes = sum(1 for _ in stream)
        rss_mb, journal_mb = self.process.memory_info().rss / 1e6, self.journal.stat().st_size / 1e6
        print(f"{self.num_trials:>8}{per_trial[0]:>10.1f}{per_trial[1]:>9.1f}{rss_mb:>9.0f}{writes / self.num_trials:>9.1f}{journal_mb:>12.1f}", flush=True)


def open_session(folder: Path, num_trials: int) -> tuple[Session, SearchSpace]:
    """A search of this number of settings, as a driver opens it."""
    sizes = tuple(32 * number for number in range(1, 21))
    space = SearchSpace.default(
        num_cpus=64,
        has_accelerator=False,
        given={"num_workers": Range(0, 128), "batch_size": Choice(sizes), "prefetch_factor": Choice((1, 2, 3, 4, 5, 6, 7, 8))},
    )
    options = SearchOptions(time_budget_s=1e9, max_trials=num_trials, keep_going=True, confirm=False)
    baseline = LoaderConfig(num_workers=0, batch_size=32)
    run = RunFolder(folder)
    workload = SearchedWorkload(ref=WorkloadRef(target="table"), name="table")
    SearchRecord(study="s", workload=workload, created_unix_s=0.0, space=space, baseline=baseline, options=options).write(run)
    session = Session(
        brain=Brain.open(None, run.journal, study_name="s", space=space),
        folder=run,
        options=options,
        study="s",
        baselines=[baseline],
        seeds=[],
        epoch_samples=50_000,
        display=Display(Console(file=io.StringIO()), time_budget_s=1e9, quiet=True),
    )
    meter, completed = Meter(run.journal), session.completed

    def counted(number: int, columns: dict[str, Any], failure: dict[str, Any] | None) -> None:
        completed(number, columns, failure)
        meter.completed()

    session.completed = counted  # type: ignore[method-assign]
    return session, space


def on_ray(folder: Path, num_trials: int) -> None:
    """Real Ray Tune, trials that do nothing."""
    import ray

    os.environ.update(_QUIET | _WORKERS)
    ray.init("local", num_cpus=SLOTS, include_dashboard=False, object_store_memory=100 * 1024**2, log_to_driver=False, logging_level="ERROR")
    tuner.Supervisor = NoOp  # type: ignore[assignment,misc]
    try:
        session, space = open_session(folder, num_trials)
        placement = Placement(cpus=1, gpus=0, trial_slot=False, num_slots=SLOTS, where="", num_promised=SLOTS)
        begun = time.perf_counter()
        tuner.run_trials(session, placement, make_ref("table"), session.options, str(folder), to_tune(space))
        wall_s = time.perf_counter() - begun
    finally:
        ray.shutdown()
    print(f"{num_trials} trials on {SLOTS} slots in {wall_s:.0f} s, {num_trials / wall_s:.1f} a second, Tune's start and end included")


def without_engine(folder: Path, num_trials: int) -> None:
    """The session alone."""
    session, _ = open_session(folder, num_trials)
    while (request := session.next()) is not None:
        _complete(session, request)


def _complete(session: Session, request: TrialRequest) -> None:
    session.completed(request.number, columns_of(request.config.to_dict(), request.number), None)


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3_000, help="on Ray")
    parser.add_argument("--without-engine", type=int, metavar="N", help="this many, without Ray")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.without_engine:
            without_engine(Path(folder), args.without_engine)
        else:
            on_ray(Path(folder), args.trials)


if __name__ == "__main__":
    main()
