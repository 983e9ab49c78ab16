"""How many trials of one search can run at once, while nodes come and go and other searches want their share.

Searches on one cluster share its slots equally, with at least one slot each; a search that finds none free waits until another
search ends. Drivers recognize other searches by the placement groups of their trials, which every driver can list. Actors that Tune
keeps for reuse hold their placement groups; `PruningScheduler.choose_trial_to_run` releases them.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import ray
from ray.util import placement_group_table

from feedrate.search.engine.look import left_out_of, look
from feedrate.search.engine.nodes import Host, living
from feedrate.search.engine.reservation import Placement
from feedrate.search.options import UsageError

COUNT_AGAIN_S = 2.0
TRIAL_RESOURCES = {"CPU", "GPU", "trial_slot"}


class Slots:
    """The number of trials that one search may run now, counted again every COUNT_AGAIN_S seconds.

    Args:
        placement: what a trial of this search reserves.
    """

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._job = ray.get_runtime_context().get_job_id()
        self._counted_s = self._looked_s = -COUNT_AGAIN_S
        self._living: list[Host] = []
        self._at_once, self._num_searches = placement.num_slots, 1
        self.refused = set(placement.left_out)
        """Ray's ids of the nodes that take no trials: they did not answer, or joined during the search and do not match it."""
        self.host_ids = dict(placement.host_ids)
        """Ray's node id -> host id, for the nodes that were asked at the start and those that have reported since."""

    def hosts(self) -> set[str]:
        """Return the ids of the living hosts that can take a trial of this search; a node whose host is unknown gives its own id."""
        return {self._host_of(host.node_id) for host in self._there()}

    def look_again(self) -> list[str]:
        """Ask every node again whether it can run a task of feedrate; refuse those that cannot, and return a sentence about each."""
        if not self.placement.host_ids:  # a local Ray
            return []
        try:
            hosts, problems = look()
        except UsageError:  # no node can run one, so refusing nodes would not help
            return []
        strangers = left_out_of(hosts) - self.refused
        self.refused |= strangers
        return problems if strangers else []

    def nodes_of(self, hosts: Collection[str]) -> set[str]:
        """Return the ids of the nodes on these hosts."""
        return {node for node, host in self.host_ids.items() if host in hosts} | (set(hosts) - set(self.host_ids.values()))

    def _host_of(self, node_id: str) -> str:
        return self.host_ids.get(node_id, node_id)

    def _there(self) -> list[Host]:
        if time.monotonic() - self._looked_s >= COUNT_AGAIN_S:
            self._looked_s, self._living = time.monotonic(), living()
        return [host for host in self._living if self.placement.takes(host) and host.node_id not in self.refused]

    def at_once(self, closed: Collection[str] = ()) -> int:
        """Return how many trials of this search may run now. It is never less than 1, so that the search waits for a growing cluster.

        Args:
            closed: ids of hosts that take no new trials.
        """
        if time.monotonic() - self._counted_s >= COUNT_AGAIN_S:
            self._counted_s = time.monotonic()
            there = [host for host in self._there() if self._host_of(host.node_id) not in closed]
            # a cluster starts nodes only if trials wait for them
            self._at_once = max(self.placement.at_once(there), self.placement.num_promised)
            searches = {searching_job(group, self.placement.trial_slot) for group in placement_group_table().values()}
            self._num_searches = len((searches - {None}) | {self._job})
        return max(self._at_once // self._num_searches, 1)

    @property
    def is_shared(self) -> bool:
        """Whether another search uses the cluster, or waits for it."""
        return self._num_searches > 1


def searching_job(group: dict[str, Any], trial_slot: bool) -> str | None:
    """Return the id of the Ray job whose trial a placement group holds; None if the group holds no trial.

    Args:
        group: an entry of `placement_group_table()`; its id ends with the id of its job.
        trial_slot: whether nodes declare `trial_slot`, so that every trial reserves some of it. If they do not, other programs that
            use Tune look like searches.
    """
    bundles = list(group["bundles"].values())  # one for each host of the trial
    if group["state"] == "REMOVED" or not bundles or any(each != bundles[0] for each in bundles):
        return None
    if len(bundles) > 1 and group["strategy"] != "STRICT_SPREAD":
        return None
    bundle = bundles[0]
    is_trial = "CPU" in bundle and set(bundle) <= TRIAL_RESOURCES and ("trial_slot" in bundle) == trial_slot
    return str(group["placement_group_id"])[-8:] if is_trial else None
