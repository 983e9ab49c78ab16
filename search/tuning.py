"""Runs a session's trials with Ray Tune: one Tuner, our searcher and scheduler, a reused supervisor actor a host."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError

from feedrate.search.engine import Placement
from feedrate.search.options import SearchOptions
from feedrate.search.past import Request
from feedrate.search.scheduler import PruningScheduler
from feedrate.search.searcher import SessionSearcher
from feedrate.search.session import Session
from feedrate.search.trainable import Supervisor
from feedrate.trainables.failure import chain
from feedrate.trainables.resolve import WorkloadRef

USER_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Ray sets the first of them in its workers; trials get the values of the user's own shell, absent ones too."""


ROUND_SEED = 500_000
"""Rounds are seeded from here on, so that they see other data than the trials which chose the finalists."""
MAX_MEMORY_KILLS = 20
"""Ray's memory monitor may end so many trials of a search: each ends Tune's whole run, which is then begun anew."""


class Ticker(tune.Callback):
    """Redraws the display while Tune waits. Tune pickles its callbacks: the session stays out."""

    def __init__(self, session: Session) -> None:
        self.session: Session | None = session

    def __getstate__(self) -> dict[str, Any]:
        return {"session": None}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called about ten times a second."""
        if self.session is not None:
            self.session.display.tick()


def run_trials(
    session: Session,
    placement: Placement,
    ref: WorkloadRef,
    options: SearchOptions,
    storage_path: str,
    domains: dict[str, Any],
) -> bool:
    """Run trials until the session ends; True when it did, False when it was interrupted.

    Args:
        session: the search.
        placement: what each trial reserves.
        ref: the workload.
        options: how each trial is measured.
        storage_path: folder for Tune's own state.
        domains: the search space as Tune domains, for Tune's own records.
    """
    searcher = SessionSearcher(session, _to_config(placement, ref, options))
    bundle: dict[str, int | float] = {"CPU": placement.cpus, "GPU": placement.gpus}
    if placement.trial_slot:
        bundle["trial_slot"] = 1
    name, memory_kills = "tune", 0
    while True:
        tuner = tune.Tuner(
            tune.with_resources(Supervisor, tune.PlacementGroupFactory([bundle])),
            param_space=domains,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=PruningScheduler(searcher),
                num_samples=-1,
                max_concurrent_trials=placement.num_slots,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=storage_path,
                verbose=0,
                callbacks=[Ticker(session)],
                # a supervisor has no state to keep
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        try:
            tuner.fit()
            break
        except Exception as error:
            memory_kills += 1
            if memory_kills > MAX_MEMORY_KILLS or not any(isinstance(link, OutOfMemoryError) for link in chain(error)):
                raise
            searcher.starved()
            name = f"tune-{memory_kills}"
    return session.stop_reason is not None and not session.running


def _to_config(placement: Placement, ref: WorkloadRef, options: SearchOptions) -> Callable[[Request], dict[str, Any]]:
    environment = {name: os.environ.get(name) for name in USER_THREADS}

    def to_config(request: Request) -> dict[str, Any]:
        body = {
            "workload": ref.to_json(),
            "kind": request.kind,
            "configs": [config.to_dict() for config in request.configs],
            "options": {
                "max_trial_s": request.max_trial_s,
                # another place of the data in every trial; the same one for all settings of a round
                "seed": options.seed * 1_000_003 + request.number + (ROUND_SEED if request.kind == "confirm" else 0),
                "measure_step": request.measure_step,
                "objective": options.objective,
                "epoch_samples": options.epoch_samples,
                "amp": options.amp,
                "compile": options.compile,
            },
            "cpus_per_trial": placement.cpus,
            "gpus_per_trial": placement.gpus,
            "threads": options.threads,
            "environment": environment,
        }
        return {"request": json.dumps(body)}

    return to_config
