"""Ray accepts cluster.yaml, and it gives trials their own machines and the world no way in."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from feedrate.search.engine.nodes import LABEL

CLUSTER = Path(__file__).parents[2] / "cluster.yaml"
SECRET_KEY = re.compile(r"secret|password|token|access_?key|credential|private_?key", re.IGNORECASE)
SECRET_VALUE = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN|[0-9A-Za-z+/]{32,}|(?i:secret|password|token|key)=")


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER.read_text())


def accept(cluster: dict[str, Any]) -> dict[str, Any]:
    """What 'ray up' does with the file before it asks AWS for anything."""
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its plain value, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, key)
    else:
        yield key, value


def faults(cluster: dict[str, Any]) -> list[str]:
    """What Ray would take and feedrate's users should not have."""
    nodes, head = cluster["available_node_types"], cluster["head_node_type"]
    found = []
    if "trial_slot" in nodes[head]["resources"]:
        found.append("the head has a trial slot")
    for name, node in nodes.items():
        if name != head and node["resources"].get("trial_slot") != 1:
            found.append(f"{name} does not have one trial slot")
        # Without groups of their own, nodes get one that Ray makes, open for SSH to 0.0.0.0/0.
        if not node["node_config"].get("SecurityGroupIds"):
            found.append(f"{name} has no security group of its own")
    if not any(option.startswith("--shm-size=") for option in cluster["docker"]["run_options"]):
        found.append("/dev/shm is Docker's 64 MB")
    if "--env=RAY_AUTH_MODE=token" not in cluster["docker"]["run_options"]:
        found.append("no token is asked for")
    if any("--dashboard-host=127.0.0.1" not in line for line in cluster["head_start_ray_commands"] if "--head" in line):
        found.append("the Jobs API listens on the network")
    for key, value in leaves(cluster):
        text = str(value)
        if re.search(r"0\.0\.0\.0|::/0", text):
            found.append(f"{key} is open to the world")
        # A path to a secret is how it gets there; the secret itself is not.
        if SECRET_VALUE.search(text) or (SECRET_KEY.search(key) and not text.startswith(("~/", "/"))):
            found.append(f"{key} looks like a secret")
    return found


def test_ray_accepts_it(cluster):
    nodes = accept(cluster)["available_node_types"]
    assert {name: node["max_workers"] for name, node in nodes.items()} == {"head": 0, "a10g-spot": 4, "a10g": 4, "l4-spot": 4, "l4": 4}


def test_each_class_has_spot_machines_and_a_way_without(cluster):
    """Of two hardware classes; spot goes first, with the same resources and label as what stands in for it."""
    nodes = cluster["available_node_types"]
    for name in ("a10g", "l4"):
        spot, other = nodes[f"{name}-spot"], nodes[name]
        assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert "InstanceMarketOptions" not in other["node_config"]
        assert spot["priority"] > other.get("priority", 0)
        assert spot["labels"] == other["labels"] == {LABEL: name}
        assert (spot["resources"], spot["node_config"]["InstanceType"]) == (other["resources"], other["node_config"]["InstanceType"])


@pytest.mark.parametrize(
    ("keys", "value", "refusal"),
    [
        (["idle_timeout"], 10, jsonschema.ValidationError),  # no such key
        (["available_node_types", "l4", "resources", "trial_slot"], "one", jsonschema.ValidationError),
        (["available_node_types", "l4", "min_workers"], 9, ValueError),  # more than max_workers
        (["head_node_type"], "haed", ValueError),
        (["docker", "image"], None, AssertionError),
    ],
)
def test_ray_refuses_it_with_a_mistake(keys, value, refusal, cluster):
    change(cluster, keys, value)
    with pytest.raises(refusal):
        accept(cluster)


def change(cluster: dict[str, Any], keys: list[str], value: Any) -> None:
    *path, last = keys
    for key in path:
        cluster = cluster[key]
    cluster[last] = value


def test_it_gives_trials_their_own_machines_and_the_world_no_way_in(cluster):
    assert faults(cluster) == []


@pytest.mark.parametrize(
    ("keys", "value", "fault"),
    [
        (["available_node_types", "head", "resources"], {"trial_slot": 1}, "the head has a trial slot"),
        (["available_node_types", "l4", "resources"], {"GPU": 1}, "l4 does not have one trial slot"),
        (["available_node_types", "l4", "node_config"], {}, "l4 has no security group of its own"),
        (["docker", "run_options"], ["--env=RAY_AUTH_MODE=token"], "/dev/shm is Docker's 64 MB"),
        (["docker", "run_options"], ["--shm-size=16g"], "no token is asked for"),
        (["docker", "head_run_options"], ["--env=RAY_AUTH_TOKEN=abc"], "head_run_options looks like a secret"),
        (["setup_commands"], ["export AWS_ID=AKIA" + 16 * "X"], "setup_commands looks like a secret"),
        (["provider", "aws_credentials"], {"aws_secret_key": "abc"}, "aws_secret_key looks like a secret"),
        (["head_start_ray_commands"], ["ray start --head"], "the Jobs API listens on the network"),
        (
            ["provider", "security_group"],
            {"IpPermissions": [{"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]},
            "CidrIp is open to the world",
        ),
    ],
)
def test_a_fault_would_be_noticed(keys, value, fault, cluster):
    change(cluster, keys, value)
    assert fault in faults(cluster)
