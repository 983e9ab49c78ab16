"""Tune's `Searcher` over our session: hands out what to measure, takes in what was measured.

Where Tune and the session differ: Tune knows trials by its own id, the study by a number; Tune calls
`on_trial_complete(error=True)` when the supervisor was lost, and never at all when a run is interrupted (the study is
then reconciled by `resume`). Nothing here is pickled with the study, the folder or a storage URL.
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
"""Starting a supervisor takes a few seconds; after so long something is in the way."""
MEMORY_MONITOR = "Ray's memory monitor killed a supervisor, because its node ran low on memory"


class SessionSearcher(Searcher):
    """Adapter from Tune to a `Session`.

    Args:
        session: the search.
        to_config: makes a trial's Tune config from a request and the ids of the nodes that it must not run on.
        slots: how many trials can run at once now, and where not.
    """

    def __init__(self, session: Session, to_config: Callable[[TrialRequest, set[str]], dict[str, Any]], slots: Slots) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.session, self.to_config, self.slots = session, to_config, slots
        session.hosts = slots.hosts
        self.requests: dict[str, TrialRequest] = {}
        """What Tune's trial of this id measures, while it runs."""
        self._placed: set[str] = set()
        self._avoided: dict[str, set[str]] = {}
        """Trial id -> ids of the hosts that it must not run on."""
        self._places: dict[str, dict[str, str]] = {}
        """Trial id -> the columns host_id and hostname of where it runs."""
        self._since = 0.0
        """Since when no trial runs."""
        self.reasons: dict[str, str] = {}
        """What Ray said of a lost supervisor, by Tune's trial id."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept Tune's call; the domains were translated when the study was opened."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a string
        """The next trial, the end, or None where what still runs has to be waited for."""
        if len(self.requests) >= self.slots.at_once(self.session.health.closed):
            return None
        request = self.session.next()
        if request is None:
            return str(Searcher.FINISHED) if self.session.stop_reason is not None else None
        self.requests[trial_id] = request
        self._avoided[trial_id] = self.session.avoided(request)
        self.session.budget.waits(request.key)  # for a slot of the cluster
        if len(self.requests) == 1:
            self._since = time.monotonic()
        return self.to_config(request, self.slots.refused | self.slots.nodes_of(self._avoided[trial_id]))

    @property
    def _confirmation(self) -> Confirmation:
        assert self.session.confirmation is not None, "a round was asked for, so that there is one"
        return self.session.confirmation

    @property
    def gives_way(self) -> bool:
        """Whether this search uses its share, and another one is to have what it only keeps."""
        return len(self._placed) >= self.slots.at_once() and self.slots.is_shared

    def begun(self, trial_id: str, node_id: str, hostname: str) -> None:
        """Ray has given the trial its resources, on this node."""
        if trial_id in self.requests:
            self._placed.add(trial_id)
            self._places[trial_id] = {"host_id": self.slots.host_ids.get(node_id, node_id), "hostname": hostname}
            self.session.budget.proceeds(self.requests[trial_id].key)
            self.session.display.proceeds("slot obtained")

    def tick(self) -> None:
        """Called about ten times a second: redraw, and say so where nothing runs for want of a slot."""
        if self.requests and not self._placed and time.monotonic() - self._since > SLOT_S:
            self.session.display.waiting("the cluster has no free slot: other searches use them, or nodes are still starting")
        self.session.display.tick()

    def measured(self, trial_id: str, result: dict[str, Any]) -> bool:
        """One setting of a confirmation round is done, with others to come; False where the round is to end."""
        request = self.requests[trial_id]
        columns, failure = self._columns(result), json.loads(result["failure"])
        return self._confirmation.measured(request.number, result["position"], columns, failure)

    def _columns(self, result: dict[str, Any]) -> dict[str, Any]:
        """The columns of a result, with the host that gave it also where the trial came to nothing."""
        host = json.loads(result["host"])
        self.slots.host_ids[result["node_id"]] = host["host_id"]
        columns: dict[str, Any] = host | json.loads(result["columns"])
        return columns

    def stranded(self, trial_id: str) -> bool:
        """Whether a trial waits for a host of those that it may run on, and none of them is left, while others could run it."""
        if trial_id not in self.requests or trial_id in self._placed:
            return False
        hosts = self.slots.hosts()
        request = self.requests[trial_id]
        return hosts <= self._avoided[trial_id] and bool(request.avoid or hosts - self.session.health.closed) and bool(hosts)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the end of a trial; called again for the same trial, it does nothing."""
        request = self.requests.pop(trial_id, None)
        self._avoided.pop(trial_id, None)
        place = self._places.pop(trial_id, {})
        if request is None:
            return
        if trial_id not in self._placed:
            if not error:
                self._nowhere(request)
                return
            if problems := self.slots.look_again():  # a supervisor could not be started somewhere
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
        """The trial was stranded (see `stranded`): its failure counts, or it is asked for anew."""
        if request.kind == "confirm":
            self._confirmation.over(request.number)
        elif request.attempt > 1:
            self.session.nowhere(request)
        else:
            self.session.give_back(request.number, "no host is left that may run it")

    def _refused(self, request: TrialRequest, result: dict[str, Any]) -> None:
        """A node that joined late is no match for this search: no more trials go there, and this one goes elsewhere."""
        is_news = result["node_id"] not in self.slots.refused
        self.slots.refused.add(result["node_id"])
        self._elsewhere(request, [f"{result['refusal']}: it takes no trials of this search"] if is_news else [])

    def _elsewhere(self, request: TrialRequest, notes: list[str]) -> None:
        """Say what is wrong with nodes, and have what was asked for measured on other ones."""
        for note in notes:
            self.session.display.say(f"note: {note}")
        if request.kind == "confirm":
            self._confirmation.over(request.number)
        else:
            self.session.give_back(request.number, "; ".join(notes) or "its node takes no trials of this search")

    def starved(self) -> None:
        """Ray's memory monitor killed a supervisor, and Tune lost all its trials with it: which one is not known of several."""
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
        """Tune asks for a checkpoint now and then; ours is the run folder, this only names the trials."""
        Path(checkpoint_path).write_text(json.dumps({id: each.number for id, each in self.requests.items()}))

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to take back: a search is resumed from its run folder."""
