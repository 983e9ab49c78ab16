"""The nodes of a joined cluster: what each has, of which hardware class it is, whether it runs the driver's versions.

Ray knows a node's resources and labels; processor, memory and versions are asked for by a task on each node, which needs
feedrate there (shipping.py sends it).
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from feedrate.search.options import UsageError
from feedrate.search.versions import installed
from feedrate.trainables.machine.host import cpu_model, host_id

LABEL = "feedrate-hardware"
"""A node's own name for its hardware class: `labels` in cluster.yaml, `ray start --labels`."""
ANSWER_S = 90.0
"""A node that does not answer for so long is left out: making a runtime environment takes seconds, a stuck node for ever."""
SAME = ("python", "torch", "ray", "feedrate", "numpy", "pillow")
"""What must be the same on every node, as it changes rates or files; other packages may differ."""
ACCELERATOR = "accelerator_type:"
BOOTSTRAP = "ray_bootstrap_config.yaml"
"""Where `ray up` puts its configuration on the head, in the home folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A node of the cluster, as far as it is known."""

    node_id: str
    hostname: str
    num_cpus: int
    """That Ray counts there."""
    num_gpus: int
    gpu_model: str = ""
    has_slot: bool = False
    """The node declares the resource trial_slot."""
    label: str = ""
    """Its own name for its hardware class."""
    cpu_model: str = ""
    memory_bytes: int = 0
    host_id: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def hardware(self) -> str:
        """The hardware class: its own name for it, else what is in the machine; equal for machines that compare."""
        if self.label:
            return self.label
        gpus = f"{self.num_gpus}x{self.gpu_model or 'gpu'}-" if self.num_gpus else ""
        memory = f"-{_two_digits(self.memory_bytes / 2**30)}gib" if self.memory_bytes else ""
        return _word(f"{gpus}{self.num_cpus}cpu{memory}-{self.cpu_model}")

    def to_json(self) -> dict[str, Any]:
        """For search.json."""
        return {name: getattr(self, name) for name in ("hostname", "host_id", "hardware", "num_cpus", "num_gpus", "gpu_model", "cpu_model", "memory_bytes")}


def living() -> list[Host]:
    """What Ray knows of the living nodes of the connected cluster, those without a CPU left out."""
    import ray

    found = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        resources = node["Resources"]
        if not node["Alive"] or not resources.get("CPU"):
            continue
        found.append(_host(node["NodeID"], node["NodeManagerHostname"], resources, node.get("Labels", {})))
    return found


def promised(path: Path | None = None) -> list[Host]:
    """Nodes that the cluster starts when trials wait for them: of `ray up`'s configuration, on its head; none elsewhere.

    Each type is there as often as it may be started. Its label tells its hardware class, as nobody can ask it.
    """
    import yaml

    path = path or Path.home() / BOOTSTRAP
    try:
        config = yaml.safe_load(path.read_text())
        types = config["available_node_types"].items()
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        return []
    found = []
    for name, kind in types:
        resources = kind.get("resources", {})
        if name == config.get("head_node_type") or not resources.get("CPU"):
            continue
        most = min(kind.get("max_workers", 0), config.get("max_workers", 0))
        labels = kind.get("labels", {})
        found += [_host("", f"{name} {number + 1}, not started yet", resources, labels) for number in range(most)]
    return found


def _host(node_id: str, hostname: str, resources: Mapping[str, float], labels: Mapping[str, str]) -> Host:
    """What a node's resources and labels tell."""
    models = [name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR)]
    return Host(
        node_id=node_id,
        hostname=hostname,
        num_cpus=int(resources["CPU"]),
        num_gpus=int(resources.get("GPU", 0)),
        gpu_model=models[0] if models else "",
        has_slot="trial_slot" in resources,
        label=labels.get(LABEL, ""),
    )


def facts() -> dict[str, Any]:
    """What only the node itself can tell; runs there."""
    return {
        "host_id": host_id(),
        "cpu_model": cpu_model(),
        "memory_bytes": psutil.virtual_memory().total,
        "versions": versions_here(),
    }


def versions_here() -> dict[str, str]:
    """Versions that must be the same on every node; a package's build (+cu126) may differ."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | {name: (installed(name) or "none").partition("+")[0] for name in SAME[1:]}


def look() -> tuple[list[Host], list[str]]:
    """Ask each node of the connected cluster for its facts; gives those that answered, and a sentence about each other.

    Raises:
        UsageError: nodes have other versions than the driver, or none of them can run a task of ours.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    hosts = living()
    if not hosts:
        return [], []
    ask = ray.remote(num_cpus=0, max_retries=0)(facts)
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(host.node_id, soft=False)).remote(): host
        for host in hosts
    }
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    known, problems = [], [f"{asked[each].hostname} does not answer and is left out" for each in silent]
    for each in ready:
        host = asked[each]
        try:
            told = ray.get(each)
        except Exception as error:  # of the node's Python: what is missing there
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
            problems.append(f"{host.hostname} is left out: {reason.strip()}")
            continue
        known.append(replace(host, **told))
    if not known:
        raise UsageError(f"no node of the cluster can run a trial: {'; '.join(problems)}")
    check_versions(known, versions_here())
    return known, problems


def left_out_of(hosts: Iterable[Host] | None) -> frozenset[str]:
    """Return Ray's ids of the living nodes that `look` did not give; none where nobody looked (None)."""
    return frozenset() if hosts is None else frozenset(host.node_id for host in living()) - {host.node_id for host in hosts}


def check_versions(hosts: Iterable[Host], here: dict[str, str]) -> None:
    """Refuse nodes whose rates would be another program's.

    Raises:
        UsageError: a node has another version of something in SAME than the driver.
    """
    found = [text for host in hosts for text in differences(host, here)]
    if found:
        raise UsageError(f"{'; '.join(found)}, but the driver has {_named(here)}: install the same versions on every node, for example with one image")


def differences(host: Host, here: Mapping[str, str]) -> list[str]:
    """What a node has in another version than the driver."""
    return [f"{host.hostname} has {name} {host.versions[name]}" for name in SAME if host.versions[name] != here[name]]


def _named(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in SAME)


def why_not(host: Host, versions: Mapping[str, str], hardware: str) -> str | None:
    """Why trials of a search do not run on a node, which joined when the search was under way; None where they do.

    Args:
        host: the node, with its facts.
        versions: of the driver.
        hardware: the class that the search runs on; empty where it is not known.
    """
    if other := differences(host, versions):
        return f"{'; '.join(other)}, but the driver has {_named(versions)}"
    if hardware and host.hardware != hardware:
        return f"{host.hostname} is a different kind of machine ({host.hardware})"
    return None


def place_of(actor: Any) -> tuple[str, str]:
    """Return the id and the host name of the node that an actor runs on, both empty where Ray does not know the actor."""
    import ray

    address = ray._private.state.actors(actor._actor_id.hex()).get("Address", {})
    node_id = address.get("NodeID", "")
    return node_id, next((node["NodeManagerHostname"] for node in ray.nodes() if node["NodeID"] == node_id), "")  # type: ignore[no-untyped-call]


def here() -> Host:
    """The node that this Ray worker runs on."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    return replace(next(host for host in living() if host.node_id == node_id), **facts())


def _two_digits(value: float) -> str:
    """Machines of one kind differ by a few MiB: 31.2 is 31, 503.7 is 500."""
    return f"{float(f'{value:.2g}'):.0f}"


def _word(text: str) -> str:
    kept = "".join(letter if letter.isalnum() else "-" for letter in text.lower())
    return "-".join(filter(None, kept.split("-")))
