"""The nodes of a joined cluster: their resources, their hardware class, and whether they run the driver's versions.

Ray knows a node's resources and labels. A task on each node finds processor, memory and versions; it needs feedrate there, which
shipping.py sends.
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
"""Ray label with which a node names its hardware class: `labels` in cluster.yaml, or `ray start --labels`."""
SAME = ("python", "torch", "ray", "feedrate", "numpy", "pillow")
"""Names whose version must be the same on every node, because it changes rates or files; other packages may differ."""
ACCELERATOR = "accelerator_type:"
BOOTSTRAP = "ray_bootstrap_config.yaml"
"""File in the home folder of the head into which `ray up` writes its configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A node of the cluster; fields that are not known have their defaults."""

    node_id: str
    hostname: str
    num_cpus: int
    """The node's CPUs as Ray counts them."""
    num_gpus: int
    gpu_model: str = ""
    has_slot: bool = False
    """Whether the node declares the resource trial_slot."""
    label: str = ""
    """The value of the node's Ray label LABEL, with which an operator names its kind of hardware; empty if it has none."""
    cpu_model: str = ""
    memory_bytes: int = 0
    host_id: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def hardware(self) -> str:
        """The hardware class: the node's label, else a name made from its GPUs, CPUs, memory and processor model.

        Rates can be compared between nodes of one class.
        """
        if self.label:
            return self.label
        gpus = f"{self.num_gpus}x{self.gpu_model or 'gpu'}-" if self.num_gpus else ""
        memory = f"-{_two_digits(self.memory_bytes / 2**30)}gib" if self.memory_bytes else ""
        return _word(f"{gpus}{self.num_cpus}cpu{memory}-{self.cpu_model}")

    def to_json(self) -> dict[str, Any]:
        """Return the fields of this node in search.json."""
        return {name: getattr(self, name) for name in ("hostname", "host_id", "hardware", "num_cpus", "num_gpus", "gpu_model", "cpu_model", "memory_bytes")}


def living() -> list[Host]:
    """Return the living nodes of the connected cluster as Ray knows them, without nodes that have no CPU."""
    import ray

    found = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        resources = node["Resources"]
        if not node["Alive"] or not resources.get("CPU"):
            continue
        found.append(_host(node["NodeID"], node["NodeManagerHostname"], resources, node.get("Labels", {})))
    return found


def promised(path: Path | None = None) -> list[Host]:
    """Return the nodes that the cluster can start when trials wait for them, from `ray up`'s configuration.

    The configuration exists only on the head of such a cluster; elsewhere the list is empty. Each node type is listed as often as
    it may be started. Its hardware class comes from its label, because a node that is not started cannot be asked.
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
    """Return a node with the facts that its resources and labels contain."""
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
    """Return the facts that only the node itself can find. Runs on that node."""
    return {
        "host_id": host_id(),
        "cpu_model": cpu_model(),
        "memory_bytes": psutil.virtual_memory().total,
        "versions": versions_here(),
    }


def versions_here() -> dict[str, str]:
    """Return the versions that must be the same on every node, without a package's build (+cu126), which may differ."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | {name: (installed(name) or "none").partition("+")[0] for name in SAME[1:]}


def check_versions(hosts: Iterable[Host], here: dict[str, str]) -> None:
    """Refuse nodes with other versions than the driver, because their rates cannot be compared.

    Raises:
        UsageError: on some node, the version of a package in SAME differs from the driver's.
    """
    found = [text for host in hosts for text in differences(host, here)]
    if found:
        raise UsageError(f"{'; '.join(found)}, but the driver has {_named(here)}: install the same versions on every node, for example with one image")


def differences(host: Host, here: Mapping[str, str]) -> list[str]:
    """Return, for each package in SAME whose version on a node differs from the driver's, a phrase that names node and version."""
    return [f"{host.hostname} has {name} {host.versions[name]}" for name in SAME if host.versions[name] != here[name]]


def _named(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in SAME)


def why_not(host: Host, versions: Mapping[str, str], hardware: str) -> str | None:
    """Return why a node that joined during the search may not run its trials; None if it may.

    Args:
        host: the node, with its facts.
        versions: the driver's versions.
        hardware: the hardware class that the search runs on; empty if it is not known.
    """
    if other := differences(host, versions):
        return f"{'; '.join(other)}, but the driver has {_named(versions)}"
    if hardware and host.hardware != hardware:
        return f"{host.hostname} is a different kind of machine ({host.hardware})"
    return None


def place_of(actor: Any) -> tuple[str, str]:
    """Return the id and the host name of the node that an actor runs on; both are empty if Ray does not know the actor."""
    import ray

    address = ray._private.state.actors(actor._actor_id.hex()).get("Address", {})
    node_id = address.get("NodeID", "")
    return node_id, next((node["NodeManagerHostname"] for node in ray.nodes() if node["NodeID"] == node_id), "")  # type: ignore[no-untyped-call]


def here() -> Host:
    """Return the node that this Ray worker runs on."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    return replace(next(host for host in living() if host.node_id == node_id), **facts())


def _two_digits(value: float) -> str:
    """Round to two digits (31.2 to 31, 503.7 to 500), because machines of one kind differ by a few MiB of memory."""
    return f"{float(f'{value:.2g}'):.0f}"


def _word(text: str) -> str:
    kept = "".join(letter if letter.isalnum() else "-" for letter in text.lower())
    return "-".join(filter(None, kept.split("-")))
