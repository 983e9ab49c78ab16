"""Searches on a real Ray of several nodes on this machine, each a host of its own by FEEDRATE_HOST_ID."""

import itertools
import json
import signal
import sys

import pytest
from conftest import TOY, records

NODES = """
import json, os, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
nodes = {}

def add(name, **more):
    nodes[name] = cluster.add_node(**{"num_cpus": 2, "resources": {"trial_slot": 1}, "env_vars": {"FEEDRATE_HOST_ID": name}, **small, **more})

for name, more in json.loads(sys.argv[1]).items():
    add(name, **more)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
while not Path("stop").exists():
    time.sleep(0.05)
    for name in list(nodes):
        if Path(f"kill-{name}").exists():
            cluster.remove_node(nodes.pop(name), allow_graceful=False)
    for path in Path(".").glob("add-*"):
        more = json.loads(path.read_text() or "{}")
        path.unlink()
        add(path.name.removeprefix("add-"), **more)
cluster.shutdown()
"""
pytestmark = pytest.mark.timeout(900)
TOKEN = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "beef" * 12}
SEARCH = ["search", "toy.py:workload", "--batch-size", "16", "--num-workers", "0..8", "--max-trial-s", "2", "--keep-going", "--no-confirm", "--wait", "0"]


@pytest.fixture
def nodes(start, tmp_path):
    """Starts a cluster of these nodes ({name: what differs}); gives the command, with its .address."""

    def start_nodes(**described):
        made = start("-c", NODES, json.dumps(described), program=[sys.executable], **TOKEN)
        made.address = made.until(lambda: made.stdout.endswith("\n") and made.stdout.strip())
        return made

    yield start_nodes
    (tmp_path / "stop").touch()


@pytest.fixture
def search(start):
    """Starts a search on the cluster."""

    def start_search(cluster, out, *arguments):
        return start(*SEARCH, "--address", cluster.address, "--out", out, *arguments, **TOKEN)

    return start_search


def intervals(runs):
    """host id -> (begin, end, run) of each measurement on it, by the host's clock, in order."""
    found = {}
    for run in runs:
        for record in records(run):
            if record.get("host_began_unix_s"):
                found.setdefault(record["host_id"], []).append((record["host_began_unix_s"], record["host_ended_unix_s"], run.name))
    return {host: sorted(times) for host, times in found.items()}


@pytest.mark.soak
def test_two_searches_share_four_nodes(nodes, search, start, tmp_path):
    """They never measure on one host at the same time; a node and a driver are killed in the middle, and every setting is accounted for."""
    cluster = nodes(**{name: {} for name in ("h1", "h2", "h3", "h4")})
    first, second = tmp_path / "first", tmp_path / "second"
    one = search(cluster, first, "--max-trials", "24")
    two = search(cluster, second, "--max-trials", "14", "--seed", "5")
    one.until(lambda: len(records(first)) >= 4, within_s=240)
    two.until(lambda: len(records(second)) >= 2, within_s=240)
    (tmp_path / "kill-h4").touch()
    one.process.send_signal(signal.SIGKILL)
    one.wait()
    resumed = start("resume", first, **TOKEN)
    assert two.wait(300) == 0, two.stderr
    assert resumed.wait(300) == 0, resumed.stderr
    for run in (first, second):
        numbers = [record["number"] for record in records(run)]
        assert sorted(set(numbers)) == sorted(numbers), "no trial twice"
        measured = [record for record in records(run) if not record.get("failure_kind")]
        assert {record["failure_kind"] for record in records(run) if record.get("failure_kind")} <= {"supervisor-died"}
        assert len(measured) >= {first: 23, second: 13}[run]
    used = intervals([first, second])
    assert set(used) == {"h1", "h2", "h3", "h4"}
    assert {run for times in used.values() for *_, run in times} == {"first", "second"}
    for host, times in used.items():
        for (_, ended, _), (began, _, _) in itertools.pairwise(times):
            assert ended <= began, f"two trials at once on {host}: {times}"


@pytest.mark.slow
def test_unlike_machines_have_an_answer_each(nodes, search, tmp_path):
    """A search on each kind, beside each other, each with its run folder; one kind is enough where it is named."""
    cluster = nodes(h1={"labels": {"feedrate-hardware": "large"}}, h2={"labels": {"feedrate-hardware": "small"}})
    both = search(cluster, tmp_path / "both", "--max-trials", "2")
    assert both.wait(300) == 0, both.stderr
    assert "2 kinds of machines: a search on each, in " in both.stderr
    for kind, host in (("large", "h1"), ("small", "h2")):
        run = tmp_path / "both" / kind
        assert {record["host_id"] for record in records(run)} == {host}
        assert len(records(run)) == 2
        assert json.loads((run / "search.json").read_text())["placement"]["hardware"] == kind
        assert (run / "best.json").exists()
        assert f"[{kind}] Saved: {run}/best.json" in both.stdout
    one = search(cluster, tmp_path / "one", "--max-trials", "1", "--hardware", "smal")
    assert one.wait(200) == 0, one.stderr
    assert {record["host_id"] for record in records(tmp_path / "one")} == {"h2"}
    wrong = search(cluster, tmp_path / "wrong", "--hardware", "medium")
    assert wrong.wait(60) == 2
    assert "--hardware medium is no hardware class of the cluster: name one of large, small" in wrong.stderr


@pytest.mark.soak
def test_rounds_are_on_several_hosts(nodes, start, tmp_path):
    """Each round whole on one of them, so that an odd host is seen; the answer says on how many."""
    cluster = nodes(h1={}, h2={})
    search = start(
        *SEARCH[:6], "--max-trial-s", "3", "--wait", "0", "--max-trials", "4", "--address", cluster.address, "--out", tmp_path / "run", **TOKEN
    )
    assert search.wait(300) == 0, search.stderr
    rounds = {}
    for record in records(tmp_path / "run"):
        if record["kind"] == "confirm":
            rounds.setdefault(record["round"], set()).add(record["host_id"])
    assert all(len(hosts) == 1 for hosts in rounds.values()), rounds
    assert set.union(*rounds.values()) == {"h1", "h2"}
    assert "interleaved rounds on 2 hosts" in search.stdout


@pytest.mark.soak
def test_a_node_that_joins_late_takes_trials(nodes, search, tmp_path):
    """Where the search is under way; the node that it began on goes on.

    Nodes of one machine share Ray's folder, which a new one empties: an actor that is there may lose its working directory,
    and its trial is then recorded and tried once more. Machines of their own have folders of their own.
    """
    cluster = nodes(h1={})
    late = search(cluster, tmp_path / "run", "--max-trials", "16")
    late.until(lambda: len(records(tmp_path / "run")) >= 2, within_s=120)
    (tmp_path / "add-h2").touch()
    assert late.wait(300) == 0, late.stderr
    measured = [record for record in records(tmp_path / "run") if not record.get("failure_kind")]
    assert {record["host_id"] for record in measured} == {"h1", "h2"}
    assert {record.get("failure_kind") for record in records(tmp_path / "run")} <= {None, "supervisor-died"}
    assert len(records(tmp_path / "run")) == 16
    assert len(measured) >= 15


@pytest.mark.soak
def test_a_late_node_of_another_kind_takes_none(nodes, search, tmp_path):
    """One note names the node. The trial that Ray had placed there runs elsewhere and is counted once."""
    cluster = nodes(h1={"labels": {"feedrate-hardware": "one"}})
    late = search(cluster, tmp_path / "run", "--max-trials", "12")
    late.until(lambda: len(records(tmp_path / "run")) >= 2, within_s=120)
    (tmp_path / "add-h2").write_text(json.dumps({"labels": {"feedrate-hardware": "other"}}))
    assert late.wait(300) == 0, late.stderr
    assert {record["host_id"] for record in records(tmp_path / "run") if record.get("host_id")} == {"h1"}
    assert {record.get("failure_kind") for record in records(tmp_path / "run")} <= {None, "supervisor-died"}
    assert len(records(tmp_path / "run")) == 12
    assert late.stderr.count("is a different kind of machine (other): it takes no trials of this search") == 1


PLACED = """
import json, os
inner = workload

def workload():
    with open("placed", "a") as stream:
        stream.write(json.dumps([os.environ.get("CUDA_VISIBLE_DEVICES"), *os.sched_getaffinity(0)]) + "\\n")
    return inner()
"""


@pytest.mark.slow
def test_trials_share_a_host(nodes, search, tmp_path):
    """One trial runs on each of the two GPUs at once, each on its own CPUs, and never two on one GPU; the answer mentions it."""
    (tmp_path / "toy.py").write_text(TOY + PLACED)
    cluster = nodes(h1={"num_gpus": 2})
    shared = search(cluster, tmp_path / "run", "--max-trials", "8", "--share", "host")
    assert shared.wait(300) == 0, shared.stderr
    assert "2 trials at once, 2 per host, which share its disk" in shared.stderr
    measured = [record for record in records(tmp_path / "run") if not record.get("failure_kind")]
    assert {record["num_cpus"] for record in measured} == {1}
    placed = {tuple(json.loads(line)) for line in (tmp_path / "placed").read_text().splitlines()}
    on_gpu = {gpu: cpus for gpu, *cpus in placed if gpu in ("0", "1")}
    assert len(on_gpu) == 2, placed
    assert len(placed) <= 3, "the same CPUs every time, and all of them where the workload is looked at"
    assert not set(on_gpu["0"]) & set(on_gpu["1"])
    times = intervals([tmp_path / "run"])["h1"]
    at_once = [sum(began <= now < ended for began, ended, _ in times) for now, _, _ in times]
    assert max(at_once) == 2, times
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["scope"] | {"trials_per_host": 2, "exclusive_host": False, "cpus_per_rank": 1} == best["scope"]
    assert "Measured with up to 2 trials at once per host" in shared.stdout
