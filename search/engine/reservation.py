"""Where trials run: what each reserves, on nodes of one hardware class, and how many can run at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from feedrate.search.engine.nodes import LABEL, Host, living
from feedrate.search.options import SearchOptions, UsageError

NODE_ID = "ray.io/node-id"
"""Ray's own label of every node."""
MOST_NAMES = 16
"""Number of hosts that are named to the user."""
RAY_UNITS = 10_000
"""Ray counts parts of a resource in steps of 1/10,000."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What one trial reserves, and how many trials can run at once."""

    cpus: int
    """That a trial may use."""
    gpus: int
    trial_slot: bool
    """Nodes declare the resource `trial_slot`, one a host."""
    num_slots: int
    where: str
    """For people: host, CPUs and GPUs."""
    hardware: str = ""
    """The class of the nodes that trials run on; empty where nobody asked."""
    selector: dict[str, str] = field(default_factory=dict)
    """Labels that a node must have; empty where any node will do that has the resources."""
    reserved: tuple[int, int] | None = None
    """CPUs and GPUs that Ray reserves, where they are not what a trial may use."""
    num_promised: int = 0
    """Trials at once when the cluster has started every node of this kind that it starts where trials wait."""
    num_shares: int = 1
    """Trials at once on a host, each on GPUs and CPUs of its own."""
    host_ids: dict[str, str] = field(default_factory=dict)
    """Ray's node id -> host id of the nodes that were looked at."""
    left_out: frozenset[str] = frozenset()
    """Ray's ids of the nodes that did not answer, or cannot run a task of ours."""

    def where_not(self, refused: Iterable[str]) -> dict[str, str]:
        """The labels that a node must have, when nodes of these ids take no more trials."""
        refused = set(refused)
        if named := self._named:
            kept = [node_id for node_id in named if node_id not in refused]
            return {**self.selector, NODE_ID: f"in({', '.join(kept or named)})"}
        return {**self.selector, NODE_ID: f"!in({', '.join(sorted(refused))})"} if refused else self.selector

    @property
    def _named(self) -> list[str]:
        """The ids of the nodes that are selected one by one; empty where nodes are selected by their label, or all of them."""
        text = self.selector.get(NODE_ID, "")
        return text.removeprefix("in(").removesuffix(")").split(", ") if text else []

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray reserves for a trial."""
        cpus, gpus = self.reserved or (self.cpus, self.gpus)
        slot = math.floor(RAY_UNITS / self.num_shares) / RAY_UNITS
        return {"CPU": float(cpus), "GPU": float(gpus)} | ({"trial_slot": slot} if self.trial_slot else {})

    def takes(self, host: Host) -> bool:
        """Whether a trial can run on this node, as far as Ray alone knows it."""
        same = not self.selector.get(LABEL) or self.selector[LABEL] == host.label
        enough = host.num_cpus >= self.bundle["CPU"] and host.num_gpus >= self.bundle["GPU"]
        named = not self._named or host.node_id in self._named
        return same and named and enough and host.has_slot == self.trial_slot

    def at_once(self, hosts: Sequence[Host]) -> int:
        """Trials at once on these nodes: one a node where they declare it, else one a host, which may be several nodes;
        where they share it as many as it has shares."""
        most: dict[str, int] = {}
        for host in hosts:
            name = host.node_id if self.trial_slot else self.host_ids.get(host.node_id, host.host_id or host.hostname)
            most[name] = max(most.get(name, 0), _shares(host, self.cpus, self.gpus) if self.num_shares > 1 else 1)
        return sum(most.values())


class SeveralClasses(UsageError):
    """The search could run on unlike machines, whose rates do not compare; `names` are their hardware classes."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"the cluster has {len(names)} kinds of machines, whose rates cannot be compared: choose one with --hardware ({', '.join(names)})")
        self.names = list(names)
        self.out = Path("feedrate-runs")
        """The run folder that the search would have had."""


def place(options: SearchOptions, hosts: Sequence[Host] | None = None) -> Placement:
    """What a trial reserves on the connected cluster.

    Args:
        options: what was asked for.
        hosts: the nodes that may be used (nodes.look); None takes what Ray knows of them.

    Raises:
        UsageError: no node has what was asked for; the message says what there is.
        SeveralClasses: nodes of several hardware classes have it, and none was named.
    """
    hosts = with_slots(living() if hosts is None else hosts)
    slots = any(host.has_slot for host in hosts)
    if not hosts:
        raise UsageError("no node of the cluster has a CPU for a trial: add a node, or search on this machine only")
    kinds = sorted({host.hardware for host in hosts})
    if options.hardware is not None:
        named = class_named(options.hardware, kinds)
        hosts = [host for host in hosts if host.hardware == named]
    most_gpus = max(host.num_gpus for host in hosts)
    gpus = options.gpus_per_trial if options.gpus_per_trial is not None else min(1, most_gpus)
    if gpus > most_gpus:
        raise UsageError(
            f"--gpus-per-trial {gpus}: the largest node has {most_gpus} GPU{'s' * (most_gpus != 1)}. Ask for fewer"
            + (", or join a cluster with --address" if options.address is None else "")
        )
    fit = [host for host in hosts if host.num_gpus >= gpus]
    most_cpus = max(host.num_cpus for host in fit)
    # one constant bundle for every trial, so that the smallest eligible node can run it (and actors are reused)
    cpus = options.cpus_per_trial or max(min(_share(host, gpus, whole=options.share is not None) for host in fit), 1)
    if cpus > most_cpus:
        raise UsageError(
            f"--cpus-per-trial {cpus}: the largest node{' with that many GPUs' * (gpus > 1)} has {most_cpus} CPUs. Ask for fewer"
        )
    fit = [host for host in fit if host.num_cpus >= cpus]
    used = sorted({host.hardware for host in fit})
    if len(used) > 1 and any(host.cpu_model or host.label for host in fit):  # known well enough to tell them apart
        raise SeveralClasses(used)
    num_shares = _num_shares(options, fit, cpus, gpus)
    there, come = [host for host in fit if host.node_id], [host for host in fit if not host.node_id]
    least_cpus, least_gpus = min(host.num_cpus for host in fit), min(host.num_gpus for host in fit)
    placement = Placement(
        cpus=cpus if options.pin_cpus else least_cpus,
        gpus=gpus,
        trial_slot=slots,
        num_slots=0,
        where="",
        hardware=used[0] if len(used) == 1 else "",
        selector=_selector(fit) if len(kinds) > 1 and len(used) == 1 else {},
        reserved=(least_cpus, least_gpus) if options.exclusive else (cpus, gpus),
        num_promised=num_shares * len(come),
        host_ids={host.node_id: host.host_id for host in there if host.host_id},
        num_shares=num_shares,
    )
    at_once = max(placement.at_once(there), placement.num_promised)
    return replace(placement, num_slots=at_once, where=_where(fit, cpus, gpus, at_once, num_shares, slots))


def _num_shares(options: SearchOptions, fit: Sequence[Host], cpus: int, gpus: int) -> int:
    """Trials at once on the smallest of these nodes.

    Raises:
        UsageError: a host is to be shared that has not two shares.
    """
    if options.share is None:
        return 1
    least = min(_shares(host, cpus, gpus) for host in fit)
    if least >= 2:
        return least
    smallest = min(fit, key=lambda host: _shares(host, cpus, gpus))
    if not gpus:
        raise UsageError(f"--share host divides a host by its GPUs, and {smallest.hostname} has none: leave it out")
    has = f"{smallest.num_gpus} GPU{'s' * (smallest.num_gpus != 1)} and {smallest.num_cpus} CPUs"
    raise UsageError(
        f"--share host is for hosts with room for several trials: {smallest.hostname} has {has}, but one trial takes {gpus} and {cpus}. "
        "Leave --share out, or ask for less with --gpus-per-trial and --cpus-per-trial"
    )


def _shares(host: Host, cpus: int, gpus: int) -> int:
    """Trials at once on a host that they share: each GPU has equally many CPUs, of which a trial uses no others."""
    if not gpus or _share(host, gpus, whole=True) < cpus:
        return 1
    return max(host.num_gpus // gpus, 1)


def with_slots(hosts: Sequence[Host]) -> list[Host]:
    """The nodes that may run trials: those that declare a trial_slot where any does, else all."""
    return [host for host in hosts if host.has_slot] or list(hosts)


def class_named(text: str, kinds: Sequence[str]) -> str:
    """The one hardware class that is meant by its name, or a part of it.

    Raises:
        UsageError: none of `kinds` is meant, or several are; the message lists them.
    """
    found = [kind for kind in kinds if kind == text] or [kind for kind in kinds if text.lower() in kind.lower()]
    if len(found) == 1:
        return found[0]
    what = "is no hardware class of the cluster" if not found else f"could be {' or '.join(found)}"
    raise UsageError(f"--hardware {text} {what}: name one of {', '.join(kinds)}")


def _share(host: Host, gpus: int, *, whole: bool = False) -> int:
    """The CPUs that belong to so many GPUs of a host; `whole`: each GPU has as many as each other."""
    if not gpus:
        return host.num_cpus
    return host.num_cpus // host.num_gpus * gpus if whole else host.num_cpus * gpus // host.num_gpus


def _selector(fit: Sequence[Host]) -> dict[str, str]:
    """Keeps trials on these nodes: by their own label, which nodes that join late have too, else one by one."""
    if fit[0].label:
        return {LABEL: fit[0].label}
    return {NODE_ID: f"in({', '.join(host.node_id for host in fit if host.node_id)})"}


def _where(fit: Sequence[Host], cpus: int, gpus: int, at_once: int, num_shares: int, slots: bool) -> str:
    first = fit[0]
    names = list(dict.fromkeys(sorted(host.hostname for host in fit if host.node_id) or [first.hostname]))
    hosts = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    what = f"{gpus} of {first.num_gpus} GPUs" if gpus else "CPU only, no GPU is used"
    more = f" · {at_once} hosts" if at_once > 1 else ""
    if slots:
        more = f" · {at_once} trial_slot{'s' * (at_once != 1)}, which searches take in turn"
    if num_shares > 1:
        more = f" · {at_once} trials at once, {num_shares} per host, which share its disk and memory bandwidth (--share host)"
    each = " each" if len(names) > 1 else ""
    return f"{hosts} · {what}, {cpus} of {first.num_cpus} CPUs{each}{more}"
