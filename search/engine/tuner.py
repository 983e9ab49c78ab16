"""Run a session's trials with Ray Tune: one Tuner, feedrate's searcher and scheduler, and one reused supervisor actor per slot."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.execution import class_cache

from feedrate.analysis.estimate import RUN_SD_FRACTION
from feedrate.analysis.run_folder import RunFolder
from feedrate.search.engine.nodes import place_of, versions_here
from feedrate.search.engine.reservation import Placement
from feedrate.search.engine.scheduler import PruningScheduler
from feedrate.search.engine.searcher import SessionSearcher
from feedrate.search.engine.slots import Slots
from feedrate.search.engine.trainable import Supervisor
from feedrate.search.options import ENOUGH_FRACTION, SearchOptions
from feedrate.search.session.session import Session
from feedrate.search.session.trial_request import TrialRequest
from feedrate.search.shipping.shipping import digest_of
from feedrate.search.terminal.ending import handler_restored
from feedrate.trainables.failure import chain
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.resolve import WorkloadRef

USER_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Thread variables of the user's shell that trials get; one that is absent there is removed. Ray sets the first one in its workers."""


ROUND_SEED = 500_000
"""Offset of the seeds of rounds, so that rounds see other data than the trials that chose the finalists."""
MAX_MEMORY_KILLS = 20
"""How often Ray's memory monitor may kill a supervisor in one search; each kill ends Tune's whole run, which is then started again."""


MOST_SLOTS = 10_000
DEFAULT_WAIT_S = 600.0
"""Default of `wait_s` on a joined cluster, whose hosts other users need too."""


class Ticker(tune.Callback):
    """A Tune callback that redraws the display while Tune waits, and says at once that the search was interrupted.

    Tune pickles its callbacks, so the searcher is left out of the state.
    """

    def __init__(self, searcher: SessionSearcher) -> None:
        self.searcher: SessionSearcher | None = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {"searcher": None}

    def setup(self, stop: Any = None, num_samples: int | None = None, total_num_samples: int | None = None, **info: Any) -> None:
        """Say it when an interrupt arrives, because Tune's own handler, which is in place by now, takes seconds to end the run."""
        ends, searcher = signal.getsignal(signal.SIGINT), self.searcher
        if searcher is None or not callable(ends) or threading.current_thread() is not threading.main_thread():
            return

        def interrupted(number: int, frame: FrameType | None) -> None:
            ends(number, frame)
            # the reader of a pipe may have gone by the same Ctrl-C (rich then raises SystemExit), or the terminal may be in the middle of a line
            with suppress(Exception, SystemExit):
                searcher.session.display.say("interrupted: ending the trial, which takes a few seconds")

        signal.signal(signal.SIGINT, interrupted)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell the searcher that a supervisor has begun the trial, and on which node."""
        if self.searcher is not None:
            self.searcher.begun(trial.trial_id, *place_of(trial.temporary_state.ray_actor))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Redraw the display. Tune calls it about ten times a second."""
        if self.searcher is not None:
            self.searcher.tick()


def run_trials(
    session: Session,
    placement: Placement,
    ref: WorkloadRef,
    options: SearchOptions,
    storage_path: str,
    domains: dict[str, Any],
    root: str | None = None,
    command: str = "",
) -> bool:
    """Run trials until the session ends; return True if it ended, False if it was interrupted.

    Args:
        session: the search.
        placement: what each trial reserves.
        ref: the workload.
        options: how each trial is measured.
        storage_path: folder for Tune's own state.
        domains: the search space as Tune domains, for Tune's own records.
        root: the folder that was sent to the cluster (shipping.py); None if none was.
        command: the command line, shown to other searches that wait for a host that this search uses.
    """
    searcher = SessionSearcher(session, _to_config(placement, ref, options, storage_path, root, command), Slots(placement))
    name, memory_kills = "tune", 0
    while True:
        tuner = tune.Tuner(
            tune.with_resources(Supervisor, partial(_resources, placement.bundle, placement.num_hosts)),
            param_space=domains,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=PruningScheduler(searcher),
                num_samples=-1,
                max_concurrent_trials=MOST_SLOTS,  # effectively no limit: the searcher counts the free slots
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=storage_path,
                verbose=0,
                callbacks=[Ticker(searcher)],
                # a supervisor has no state to save
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        try:
            # Tune leaves its own handler of Ctrl-C in place, which ends nothing once the run is over
            with _without_credentials(), handler_restored(signal.SIGINT):
                tuner.fit()
            break
        except Exception as error:
            memory_kills += 1
            if memory_kills > MAX_MEMORY_KILLS or not any(isinstance(link, OutOfMemoryError) for link in chain(error)):
                raise
            searcher.starved()
            name = f"tune-{memory_kills}"
    return session.stop_reason is not None and not session.running


@contextmanager
def _without_credentials() -> Iterator[None]:
    """Keep Ray Tune (2.60) from copying the driver's AWS credentials into the runtime environment of its actors.

    Ray's state API shows runtime environments, and every node writes them into world-readable logs. A local search needs no copy,
    because its processes inherit the driver's environment.
    """
    before = set(class_cache.ENV_VARS_TO_PROPAGATE)
    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in before if name.startswith("AWS_")}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE |= before


def _resources(bundle: dict[str, float], num_hosts: int, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return what Ray reserves for a trial on each of its hosts, and the labels of the nodes on which it may."""
    selector = json.loads(config["selector"])
    more: dict[str, Any] = {"bundle_label_selector": [selector] * num_hosts} if selector else {}
    strategy = "PACK" if num_hosts == 1 else "STRICT_SPREAD"
    return tune.PlacementGroupFactory([bundle] * num_hosts, strategy=strategy, **more)


def _to_config(
    placement: Placement, ref: WorkloadRef, options: SearchOptions, storage_path: str, root: str | None, command: str
) -> Callable[[TrialRequest, set[str]], dict[str, Any]]:
    shipped = {"root": root, "digest": digest_of(ref) if root is not None else None}
    environment = {name: os.environ.get(name) for name in USER_THREADS}
    log_path = str(RunFolder(storage_path).script_log) if ref.command else None
    expects = None  # a local Ray has only this node, so there is nothing to compare
    if options.address is not None:
        expects = {"versions": versions_here(), "hardware": placement.hardware if placement.host_ids else ""}

    def to_config(request: TrialRequest, refused: set[str]) -> dict[str, Any]:
        body = {
            "workload": ref.to_json(),
            "shipped": shipped,
            "command": command,
            "kind": request.kind,
            "configs": [config.to_dict() for config in request.configs],
            "options": MeasureOptions(
                max_trial_s=request.max_trial_s,
                # rounds need precise trials: their intervals assume that trials differ by no more than fresh starts do (analysis/rounds.py)
                enough_fraction=RUN_SD_FRACTION if request.kind == "confirm" else ENOUGH_FRACTION,
                # every trial starts at another place of the data; all settings of a round start at the same one
                seed=options.seed * 1_000_003 + request.number + (ROUND_SEED if request.kind == "confirm" else 0),
                measure_step=request.measure_step,
                between_epochs=request.between_epochs,
                objective=options.objective,
                epoch_samples=options.epoch_samples,
                amp=options.amp,
                compile=options.compile,
                shares_host=placement.num_shares > 1,
            ).to_json(),
            "expects": expects,
            "cpus_per_trial": placement.cpus if options.pin_cpus else None,
            "wait_s": (DEFAULT_WAIT_S if options.address is not None else 0.0) if options.wait_s is None else options.wait_s,
            "gpus_per_trial": placement.gpus,
            "num_hosts": placement.num_hosts,
            "threads": options.threads,
            "environment": environment,
            "log_path": log_path,
        }
        return {"request": json.dumps(body), "selector": json.dumps(placement.where_not(refused))}

    return to_config
