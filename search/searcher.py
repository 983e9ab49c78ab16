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

from feedrate.search.confirmation import Confirmation
from feedrate.search.past import Request
from feedrate.search.session import Session

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
        self.requests: dict[str, Request] = {}
        """What Tune's trial of this id measures, while it runs."""
        self.reasons: dict[str, str] = {}
        """What Ray said of a lost supervisor, by Tune's trial id."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept Tune's call; the domains were translated when the study was opened."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a string
        """The next trial, the end, or None where what still runs has to be waited for."""
        request = self.session.next()
        if request is None:
            return str(Searcher.FINISHED) if self.session.stop_reason is not None else None
        self.requests[trial_id] = request
        return self.to_config(request)

    @property
    def _confirmation(self) -> Confirmation:
        assert self.session.confirmation is not None, "a round was asked for, so that there is one"
        return self.session.confirmation

    def measured(self, trial_id: str, result: dict[str, Any]) -> None:
        """One setting of a confirmation round is done, with others to come."""
        request = self.requests[trial_id]
        columns, failure = json.loads(result["columns"]), json.loads(result["failure"])
        self._confirmation.measured(request.number, result["position"], columns, failure)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the end of a trial; called again for the same trial, it does nothing."""
        request = self.requests.pop(trial_id, None)
        if request is None:
            return
        is_lost = error or result is None or not result.get("columns")
        if request.kind == "confirm":
            self._confirmation.over(request.number, lost=is_lost)
        elif is_lost:
            self.session.lost(request.number, self.reasons.pop(trial_id, ""))
        else:
            assert result is not None
            self.session.completed(request.number, json.loads(result["columns"]), json.loads(result["failure"]))

    def starved(self) -> None:
        """Ray's memory monitor killed a supervisor, and Tune lost all its trials with it: which one is not known of several."""
        self.requests.clear()
        running = self.session.running
        for request in running:
            if request.kind == "confirm":
                self._confirmation.over(request.number, lost=True)
            else:
                self.session.lost(request.number, MEMORY_MONITOR, starved=len(running) == 1)

    def save(self, checkpoint_path: str) -> None:
        """Tune asks for a checkpoint now and then; ours is the run folder, this only names the trials."""
        Path(checkpoint_path).write_text(json.dumps({id: each.number for id, each in self.requests.items()}))

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to take back: a search is resumed from its run folder."""
