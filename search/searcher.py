"""Tune's `Searcher` over our session: hands out what to measure, takes in what was measured.

Where Tune and the session differ: Tune knows trials by its own id, the study by a number; Tune calls
`on_trial_complete(error=True)` when the supervisor was lost, and never at all when a run is interrupted (the study is
then reconciled by `resume`). Nothing here is pickled with the study, the folder or a storage URL.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from feedrate.search.session import Request, Session

METRIC = "throughput_sps"
MEMORY_MONITOR = "Ray's memory monitor killed a supervisor, because its node ran low on memory"


class SessionSearcher(Searcher):
    """Adapter from Tune to a `Session`.

    Args:
        session: the search.
        to_config: makes a trial's Tune config from a request.
    """

    def __init__(self, session: Session, to_config: Callable[[Request], dict[str, Any]]) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.session, self.to_config = session, to_config
        self.numbers: dict[str, int] = {}
        """Trial number by Tune's trial id, while the trial runs."""
        self.reasons: dict[str, str] = {}
        """What Ray said of a lost supervisor, by Tune's trial id."""

    def __getstate__(self) -> dict[str, Any]:
        return {"numbers": dict(self.numbers)}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept Tune's call; the domains were translated when the study was opened."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # FINISHED is a string
        """The next measurement, or the end."""
        request = self.session.next()
        if request is None:
            return str(Searcher.FINISHED)
        self.numbers[trial_id] = request.number
        return self.to_config(request)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the end of a trial; called again for the same trial, it does nothing."""
        number = self.numbers.pop(trial_id, None)
        if number is None:
            return
        if error or result is None or not result.get("columns"):
            self.session.lost(number, self.reasons.pop(trial_id, ""))
        else:
            self.session.completed(number, json.loads(result["columns"]), json.loads(result["failure"]))

    def starved(self) -> None:
        """Ray's memory monitor killed a supervisor, and Tune lost all its trials with it: which one is not known of several."""
        self.numbers.clear()
        running = self.session.running
        for request in running:
            self.session.lost(request.number, MEMORY_MONITOR, starved=len(running) == 1)

    def save(self, checkpoint_path: str) -> None:
        """Tune asks for a checkpoint now and then; ours is the run folder, this only names the trials."""
        Path(checkpoint_path).write_text(json.dumps(self.numbers))

    def restore(self, checkpoint_path: str) -> None:
        """Take the names back."""
        self.numbers = json.loads(Path(checkpoint_path).read_text())
