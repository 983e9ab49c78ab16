"""Where trials run: what each trial reserves, on nodes of which hardware class, and how many trials can run at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from feedrate.search.engine.nodes import LABEL, Host, living
from feedrate.search.options import SearchOptions, UsageError

NODE_ID = "ray.io/node-id"
"""Label that Ray gives every node."""
MOST_NAMES = 16
"""Largest number of hosts that are printed by name."""
RAY_UNITS = 10_000
"""Steps into which Ray divides one unit of a resource."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What one trial reserves, and how many trials can run at once."""

    cpus: int
    """CPUs that a trial may use, on each of its hosts."""
    gpus: int
    trial_slot: bool
    """Whether nodes declare the resource `trial_slot`, one per host."""
    num_slots: int
    where: str
    """Description for the user: hosts, CPUs and GPUs."""
    hardware: str = ""
    """Hardware class of the nodes that trials run on; empty if the nodes have several."""
    selector: dict[str, str] = field(default_factory=dict)
    """Labels that a node must have; empty if any node with the resources will do."""
    reserved: tuple[int, int] | None = None
    """CPUs and GPUs that Ray reserves for a trial; None if Ray reserves exactly those that the trial is allowed to use."""
    num_promised: int = 0
    """Number of trials that can run at once on the nodes that the cluster starts on demand."""
    num_hosts: int = 1
    """Number of hosts on which the ranks of one trial run."""
    num_shares: int = 1
    """Number of trials that can run at once on one host, each on its own GPUs and CPUs."""
    host_ids: dict[str, str] = field(default_factory=dict)
    """Ray's node id -> host id of the nodes that were asked for their facts."""
    left_out: frozenset[str] = frozenset()
    """Ray's ids of the nodes that did not answer, or cannot run a task of feedrate."""

    def where_not(self, refused: Iterable[str]) -> dict[str, str]:
        """Return the labels that a node must have if the nodes with the ids `refused` take no more trials."""
        refused = set(refused)
        if named := self._named:
            kept = [node_id for node_id in named if node_id not in refused]
            return {**self.selector, NODE_ID: f"in({', '.join(kept or named)})"}
        return {**self.selector, NODE_ID: f"!in({', '.join(sorted(refused))})"} if refused else self.selector

    @property
    def _named(self) -> list[str]:
        """The ids of the nodes that are selected by id; empty if nodes are selected by their label, or all are."""
        text = self.selector.get(NODE_ID, "")
        return text.removeprefix("in(").removesuffix(")").split(", ") if text else []

    @property
    def bundle(self) -> dict[str, float]:
        """The resources that Ray reserves for a trial on each of its hosts."""
        cpus, gpus = self.reserved or (self.cpus, self.gpus)
        slot = math.floor(RAY_UNITS / self.num_shares) / RAY_UNITS
        return {"CPU": float(cpus), "GPU": float(gpus)} | ({"trial_slot": slot} if self.trial_slot else {})

    def takes(self, host: Host) -> bool:
        """Return whether a trial can run on this node, judged by its resources and labels in Ray."""
        same = not self.selector.get(LABEL) or self.selector[LABEL] == host.label
        enough = host.num_cpus >= self.bundle["CPU"] and host.num_gpus >= self.bundle["GPU"]
        named = not self._named or host.node_id in self._named
        return same and named and enough and host.has_slot == self.trial_slot

    def at_once(self, hosts: Sequence[Host]) -> int:
        """Return how many trials can run at once on these nodes.

        One trial runs per node if nodes declare `trial_slot`, else one per host, which may have several nodes. If trials share
        hosts, each of these counts as often as it has shares.
        """
        most: dict[str, int] = {}
        for host in hosts:
            name = host.node_id if self.trial_slot else self.host_ids.get(host.node_id, host.host_id or host.hostname)
            most[name] = max(most.get(name, 0), _shares(host, self.cpus, self.gpus) if self.num_shares > 1 else 1)
        return sum(most.values()) // self.num_hosts


class SeveralClasses(UsageError):
    """An error for a search that could run on unlike machines, whose rates cannot be compared; `names` are their hardware classes."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"the cluster has {len(names)} kinds of machines, whose rates cannot be compared: choose one with --hardware ({', '.join(names)})")
        self.names = list(names)
        self.out = Path("feedrate-runs")
        """The run folder that the search would have had."""


def place(options: SearchOptions, hosts: Sequence[Host] | None = None, num_ranks: int = 1) -> Placement:
    """Decide what a trial reserves on the connected cluster.

    Args:
        options: the options of the search.
        hosts: the nodes that may be used (`look`); None takes all living nodes as Ray knows them.
        num_ranks: processes of a trial that train together on each of its hosts; if the hosts have GPUs, each takes one.

    Raises:
        UsageError: no node has the requested resources; the message says what there is.
        SeveralClasses: nodes of several hardware classes have the resources, and the options name none.
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
    if options.gpus_per_trial is None and num_ranks > most_gpus > 0:
        raise UsageError(
            f"the training has {num_ranks} ranks on one host, and the largest host has {most_gpus} GPU{'s' * (most_gpus != 1)}: start fewer ranks, or say with "
            "--gpus-per-trial how many GPUs all of them share (0 if they train on CPUs)"
        )
    gpus = options.gpus_per_trial if options.gpus_per_trial is not None else min(num_ranks, most_gpus)
    if gpus > most_gpus:
        raise UsageError(
            f"--gpus-per-trial {gpus}: the largest node has {most_gpus} GPU{'s' * (most_gpus != 1)}. Ask for fewer"
            + (", or join a cluster with --address" if options.address is None else "")
        )
    fit = [host for host in hosts if host.num_gpus >= gpus]
    most_cpus = max(host.num_cpus for host in fit)
    # every trial reserves the same bundle, so that the smallest eligible node can run it and Tune can reuse actors
    cpus = options.cpus_per_trial or max(min(_share(host, gpus, whole=options.share is not None) for host in fit), 1)
    if cpus > most_cpus:
        raise UsageError(
            f"--cpus-per-trial {cpus}: the largest node{' with that many GPUs' * (gpus > 1)} has {most_cpus} CPUs. Ask for fewer"
        )
    fit = [host for host in fit if host.num_cpus >= cpus]
    used = sorted({host.hardware for host in fit})
    if len(used) > 1 and any(host.cpu_model or host.label for host in fit):  # otherwise too little is known to tell classes apart
        raise SeveralClasses(used)
    num_hosts = _num_hosts(options, fit)
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
        num_promised=num_shares * len(come) // num_hosts,
        host_ids={host.node_id: host.host_id for host in there if host.host_id},
        num_hosts=num_hosts,
        num_shares=num_shares,
    )
    at_once = max(placement.at_once(there), placement.num_promised, 1)
    return replace(placement, num_slots=at_once, where=_where(fit, cpus, gpus, at_once, num_shares, slots, num_hosts))


def _num_hosts(options: SearchOptions, fit: Sequence[Host]) -> int:
    """Return on how many hosts the ranks of one trial run.

    Raises:
        UsageError: there are fewer hosts.
    """
    there = len({host.host_id or host.node_id or host.hostname for host in fit})
    if options.hosts_per_trial > there:
        raise UsageError(
            f"--hosts-per-trial {options.hosts_per_trial}: the cluster has {there} host{'s' * (there != 1)} on which a trial can run. Ask for fewer, or add nodes"
        )
    return options.hosts_per_trial


def _num_shares(options: SearchOptions, fit: Sequence[Host], cpus: int, gpus: int) -> int:
    """Return how many trials can run at once on the smallest of these nodes; 1 without `--share`.

    Raises:
        UsageError: a host is to be shared but has room for only one trial.
    """
    if options.share is None:
        return 1
    least = min(_shares(host, cpus, gpus) for host in fit)
    if least >= 2:
        return least
    smallest = min(fit, key=lambda host: _shares(host, cpus, gpus))
    if not gpus:
        raise UsageError(f"--share host runs one trial per GPU or group of GPUs at a time, and {smallest.hostname} has no GPU: leave --share out")
    has = f"{smallest.num_gpus} GPU{'s' * (smallest.num_gpus != 1)} and {smallest.num_cpus} CPUs"
    raise UsageError(
        f"--share host is for hosts with room for several trials: {smallest.hostname} has {has}, but one trial takes {gpus} and {cpus}. "
        "Leave --share out, or ask for less with --gpus-per-trial and --cpus-per-trial"
    )


def _shares(host: Host, cpus: int, gpus: int) -> int:
    """Return how many trials can share a host.

    CPUs are split evenly among the GPUs; a trial uses only the CPUs of its own GPUs.
    """
    if not gpus or _share(host, gpus, whole=True) < cpus:
        return 1
    return max(host.num_gpus // gpus, 1)


def with_slots(hosts: Sequence[Host]) -> list[Host]:
    """Return the nodes that may run trials: those that declare a trial_slot if any node does, else all."""
    return [host for host in hosts if host.has_slot] or list(hosts)


def class_named(text: str, kinds: Sequence[str]) -> str:
    """Return the one hardware class whose name is `text`, or contains it.

    Raises:
        UsageError: `text` matches none of `kinds`, or several; the message lists them.
    """
    found = [kind for kind in kinds if kind == text] or [kind for kind in kinds if text.lower() in kind.lower()]
    if len(found) == 1:
        return found[0]
    what = "is no hardware class of the cluster" if not found else f"could be {' or '.join(found)}"
    raise UsageError(f"--hardware {text} {what}: name one of {', '.join(kinds)}")


def _share(host: Host, gpus: int, *, whole: bool = False) -> int:
    """Return how many CPUs a trial gets that uses `gpus` of the host's GPUs: the same share of the CPUs as of the GPUs, rounded down.

    Args:
        whole: round down the number for one GPU, and multiply it; otherwise only the product is rounded.
    """
    if not gpus:
        return host.num_cpus
    return host.num_cpus // host.num_gpus * gpus if whole else host.num_cpus * gpus // host.num_gpus


def _selector(fit: Sequence[Host]) -> dict[str, str]:
    """Return the labels that keep trials on these nodes: their hardware label, which nodes that join later have too, else their ids."""
    if fit[0].label:
        return {LABEL: fit[0].label}
    return {NODE_ID: f"in({', '.join(host.node_id for host in fit if host.node_id)})"}


def _where(fit: Sequence[Host], cpus: int, gpus: int, at_once: int, num_shares: int, slots: bool, num_hosts: int) -> str:
    first = fit[0]
    names = list(dict.fromkeys(sorted(host.hostname for host in fit if host.node_id) or [first.hostname]))
    hosts = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    what = f"{gpus} of {first.num_gpus} GPUs" if gpus else "CPU only, no GPU is used"
    more = f" · {at_once} hosts" if at_once > 1 else ""
    if slots:
        more = f" · {at_once} trial_slot{'s' * (at_once != 1)}, which searches take in turn"
    if num_shares > 1:
        more = f" · {at_once} trials at once, {num_shares} per host, which share its disk and memory bandwidth (--share host)"
    if num_hosts > 1:
        more = f" · each trial on {num_hosts} hosts" + (f", {at_once} trials at once" if at_once > 1 else "")
    each = " each" if len(names) > 1 else ""
    return f"{hosts} · {what}, {cpus} of {first.num_cpus} CPUs{each}{more}"
