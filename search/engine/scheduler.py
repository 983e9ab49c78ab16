"""The `TrialScheduler` with which Ray Tune lets the study's pruner stop trials that cannot win.

Tune calls the scheduler before the searcher, so the scheduler reports the intermediate value to the study. Tune never checkpoints
the state of a scheduler, so this one has none: all state is in the study.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from feedrate.search.engine.searcher import SessionSearcher


class PruningScheduler(FIFOScheduler):
    """A first-in-first-out scheduler that stops a trial when the session decides that it cannot win."""

    _supports_buffered_results = False

    def __init__(self, searcher: SessionSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher = searcher

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Accept Tune's call and ignore it: the session computes the metric itself."""
        return True

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return the next trial in line, after stopping stranded trials and releasing kept actors that another search may need."""
        for trial in list(tune_controller.get_live_trials()):
            if self.searcher.stranded(trial.trial_id):
                tune_controller.stop_trial(trial)
        if self.searcher.gives_way:
            tune_controller._cleanup_cached_actors(force_all=True)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return CONTINUE or STOP for a trial that reported a result."""
        request = self.searcher.requests.get(trial.trial_id)
        if request is None:
            return str(TrialScheduler.CONTINUE)
        session = self.searcher.session
        if result["waiting"]:
            session.budget.waits(request.key)
            session.display.waiting(result["waiting"], json.loads(result["host"])["hostname"])
            return str(TrialScheduler.CONTINUE)
        session.budget.proceeds(request.key)
        if result["proceeds"]:
            session.display.proceeds("the wait for the host ended")
            return str(TrialScheduler.CONTINUE)
        if request.kind == "confirm":
            goes_on = self.searcher.measured(trial.trial_id, result)
            return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)
        columns = json.loads(result["columns"])
        if columns and session.should_stop(request.number, columns):
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Keep Ray's reason for the loss of a supervisor, because Tune calls the searcher next and does not pass the reason."""
        try:
            lines = Path(trial.error_file).read_text().strip().splitlines()
        except (OSError, TypeError):
            lines = []
        self.searcher.reasons[trial.trial_id] = lines[-1] if lines else ""
        super().on_trial_error(tune_controller, trial)

    def debug_string(self) -> str:
        """Return a description for Tune's own log."""
        return "Stops trials whose interval lies below the best one's."
