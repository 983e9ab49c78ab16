"""The `Searcher` that connects Ray Tune to feedrate's `Session`: it passes on the next trial, and takes in results.

Tune and the session differ in two ways. Tune knows a trial by its own id, the study by a number. Tune calls
`on_trial_complete(error=True)` if the supervisor was lost, and does not call it at all if a run is interrupted; `resume` then
reconciles the study. Tune pickles its searcher, so `__getstate__` keeps the study, the folder and the storage URL out of the pickle.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from feedrate.search.engine.slots import Slots
from feedrate.search.session.confirmation import Confirmation
from feedrate.search.session.session import Session
from feedrate.search.session.trial_request import TrialRequest

METRIC = "throughput_sps"
SLOT_S = 10.0
"""Seconds after which a trial that has not begun counts as waiting for a slot; starting a supervisor takes a few seconds."""
MEMORY_MONITOR = "Ray's memory monitor killed a supervisor, because its node ran low on memory"


class SessionSearcher(Searcher):
    """Adapter from Tune to a `Session`.

    Args:
        session: the search.
        to_config: makes a trial's Tune config from a request and the ids of the nodes that it must not run on.
        slots: says how many trials can run at once now, and which nodes take none.
    """

    def __init__(self, session: Session, to_config: Callable[[TrialRequest, set[str]], dict[str, Any]], slots: Slots) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.session, self.to_config, self.slots = session, to_config, slots
        session.hosts = slots.hosts
        self.requests: dict[str, TrialRequest] = {}
        """Tune's trial id -> what the trial measures, for trials that are asked for or running."""
        self._placed: set[str] = set()
        self._avoided: dict[str, set[str]] = {}
        """Trial id -> ids of the hosts that it must not run on."""
        self._places: dict[str, dict[str, str]] = {}
        """Trial id -> the columns host_id and hostname of the host that it runs on."""
        self._since = 0.0
        """Monotonic time since which no trial runs."""
        self.reasons: dict[str, str] = {}
        """Tune's trial id -> Ray's reason for the loss of the supervisor."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept Tune's call; the domains were translated when the study was opened."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a string
        """Return the config of the next trial, FINISHED at the end, or None if Tune must ask again later."""
        if len(self.requests) >= self.slots.at_once(self.session.health.closed):
            return None
        request = self.session.next()
        if request is None:
            return str(Searcher.FINISHED) if self.session.stop_reason is not None else None
        self.requests[trial_id] = request
        self._avoided[trial_id] = self.session.avoided(request)
        self.session.budget.waits(request.key)  # the trial waits until Ray gives it a slot of the cluster
        if len(self.requests) == 1:
            self._since = time.monotonic()
        return self.to_config(request, self.slots.refused | self.slots.nodes_of(self._avoided[trial_id]))

    @property
    def _confirmation(self) -> Confirmation:
        assert self.session.confirmation is not None, "a round was asked for, so that there is one"
        return self.session.confirmation

    @property
    def gives_way(self) -> bool:
        """Whether this search should release the slots that it keeps but does not use: it has its share, and another search needs them."""
        return len(self._placed) >= self.slots.at_once() and self.slots.is_shared

    def begun(self, trial_id: str, node_id: str, hostname: str) -> None:
        """Note that Ray has given the trial its resources, on this node."""
        if trial_id in self.requests:
            self._placed.add(trial_id)
            self._places[trial_id] = {"host_id": self.slots.host_ids.get(node_id, node_id), "hostname": hostname}
            self.session.budget.proceeds(self.requests[trial_id].key)
            self.session.display.proceeds("slot obtained")

    def tick(self) -> None:
        """Redraw the display, and say if no trial runs because no slot is free. Called about ten times a second."""
        if self.requests and not self._placed and time.monotonic() - self._since > SLOT_S:
            self.session.display.waiting("the cluster has no free slot: other searches use them, or nodes are still starting")
        self.session.display.tick()

    def measured(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Record one setting of a confirmation round; return False if the round must end now, True if it continues."""
        request = self.requests[trial_id]
        columns, failure = self._columns(result), json.loads(result["failure"])
        return self._confirmation.measured(request.number, result["position"], columns, failure)

    def _columns(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the columns of a result; they name the host even if the trial failed."""
        host = json.loads(result["host"])
        self.slots.host_ids[result["node_id"]] = host["host_id"]
        columns: dict[str, Any] = host | json.loads(result["columns"])
        return columns

    def stranded(self, trial_id: str) -> bool:
        """Return whether a trial waits although none of the hosts that it may run on is left, while other hosts are alive."""
        if trial_id not in self.requests or trial_id in self._placed:
            return False
        hosts = self.slots.hosts()
        request = self.requests[trial_id]
        return hosts <= self._avoided[trial_id] and bool(request.avoid or hosts - self.session.health.closed) and bool(hosts)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the end of a trial; a second call for the same trial does nothing."""
        request = self.requests.pop(trial_id, None)
        self._avoided.pop(trial_id, None)
        place = self._places.pop(trial_id, {})
        if request is None:
            return
        if trial_id not in self._placed:
            if not error:
                self._nowhere(request)
                return
            if problems := self.slots.look_again():  # a supervisor could not be started on some node
                self._elsewhere(request, problems)
                return
        self._placed.discard(trial_id)
        self._since = time.monotonic() if not self._placed else self._since
        if result is not None and result.get("refusal"):
            self._refused(request, result)
            return
        is_lost = error or result is None or not result.get("columns")
        if request.kind == "confirm":
            self._confirmation.over(request.number, lost=is_lost, place=place)
        elif is_lost:
            self.session.lost(request.number, self.reasons.pop(trial_id, ""), place=place)
        else:
            assert result is not None
            self.session.completed(request.number, self._columns(result), json.loads(result["failure"]))

    def _nowhere(self, request: TrialRequest) -> None:
        """Handle a trial that was stranded (see `stranded`): count its earlier failure, or have it asked for again."""
        if request.kind == "confirm":
            self._confirmation.over(request.number)
        elif request.attempt > 1:
            self.session.nowhere(request)
        else:
            self.session.give_back(request.number, "no host is left that may run it")

    def _refused(self, request: TrialRequest, result: dict[str, Any]) -> None:
        """Send no more trials to a node that joined late and does not match this search, and have this trial run elsewhere."""
        is_news = result["node_id"] not in self.slots.refused
        self.slots.refused.add(result["node_id"])
        self._elsewhere(request, [f"{result['refusal']}: it takes no trials of this search"] if is_news else [])

    def _elsewhere(self, request: TrialRequest, notes: list[str]) -> None:
        """Print the notes about nodes, and have the request measured on other nodes."""
        for note in notes:
            self.session.display.say(f"note: {note}")
        if request.kind == "confirm":
            self._confirmation.over(request.number)
        else:
            self.session.give_back(request.number, "; ".join(notes) or "its node takes no trials of this search")

    def starved(self) -> None:
        """Record the trials that were running when Ray's memory monitor killed a supervisor, because Tune loses all trials then.

        If several trials were running, it is not known which supervisor was killed.
        """
        running = self.session.running
        place = next(iter(self._places.values()), {}) if len(running) == 1 else {}
        for each in (self.requests, self._avoided, self._places, self._placed):
            each.clear()
        for request in running:
            if request.kind == "confirm":
                self._confirmation.over(request.number, lost=True)
            else:
                self.session.lost(request.number, MEMORY_MONITOR, starved=len(running) == 1, place=place)

    def save(self, checkpoint_path: str) -> None:
        """Write the numbers of the running trials, because Tune asks for a checkpoint now and then; the real one is the run folder."""
        Path(checkpoint_path).write_text(json.dumps({id: each.number for id, each in self.requests.items()}))

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a search is resumed from its run folder."""
