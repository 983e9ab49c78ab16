"""Searches on machines that share no file system (machines.py), started as an operator would start them. `make test-slow` runs them."""

import json
import re
import shlex
from pathlib import Path

import machines
import pathspec
import pytest
from census import eventually
from conftest import TOY, records
from machines import Lan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
URL = "http://localhost:8265"
SEARCH = ["--batch-size", "16", "--num-workers", "0..2", "--max-trial-s", "3", "--no-confirm", "--wait", "0"]
NEEDS_DATA = TOY + """
inner = workload


def workload():
    import os
    open(os.path.expanduser("~/data")).close()
    return inner()
"""
START = "ray start {where} --num-cpus=2 --object-store-memory=100000000 --resources='{{\"trial_slot\": 1}}' >/dev/null"


@pytest.fixture(scope="module")
def lan():
    """Two machines for a cluster, of which only the first has the user's folder and data, and one that belongs to no cluster."""
    if why := machines.why_not():
        pytest.skip(why)
    with Lan("first", "second", "laptop") as made:
        yield made


def start_ray(lan, *, token):
    """A cluster of both machines, as docs/cluster.md says; gives the environment that a user has there."""
    environment = {"RAY_AUTH_MODE": "token"} if token else {}
    more = environment | {"RAY_memory_monitor_refresh_ms": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    if token:
        lan["first"].shell("ray get-auth-token --generate >/dev/null", **more)
        (lan["second"].home / ".ray").mkdir(exist_ok=True)
        (lan["second"].home / ".ray" / "auth_token").write_bytes((lan["first"].home / ".ray" / "auth_token").read_bytes())
    lan["first"].shell(START.format(where="--head --port=6379 --dashboard-host=127.0.0.1"), **more)
    lan["second"].shell(START.format(where="--address=first:6379"), **more)
    return environment


@pytest.fixture(scope="module")
def cluster(lan):
    """The same with a token: runs feedrate commands on the first machine."""
    environment = start_ray(lan, token=True)

    def run(*arguments, machine="first", timeout_s=280, **more):
        return lan[machine].run(*arguments, timeout_s=timeout_s, **environment | more)

    return run


def by_host(run):
    """host name -> the failure kinds of the records there, None for measurements."""
    found = {}
    for record in records(run):
        found.setdefault(record["hostname"], set()).add(record.get("failure_kind"))
    return found


def test_the_users_folder_travels_with_a_search(lan, cluster):
    """Trials on a node that lacks it find it, without what may hold a secret; the first line names both hosts."""
    project = lan["first"].project
    (project / "train.py").write_text("import helper\n" + TOY)
    (project / "helper.py").touch()
    (project / ".env").write_text("TOKEN=secret")
    done = cluster("search", "train.py:workload", *SEARCH, "--max-trials", "6", "--address", "auto", "--out", "folder")
    assert done.code == 0, done.stderr
    assert by_host(project / "folder") == {"first": {None}, "second": {None}}
    assert any(record["origin"] == "baseline" for record in records(project / "folder"))
    assert "[0:00] first, second · CPU only" in done.stderr
    assert "note: not sent to the cluster: .env" in done.stderr
    assert "note: Ray's dashboard: http://127.0.0.1:8265" in done.stderr
    sent = lan["second"].shell("find /tmp/ray/session_latest/runtime_resources/working_dir_files -name .env -o -name train.py")
    assert "/train.py" in sent
    assert ".env" not in sent


@pytest.mark.parametrize("sick", ["lacks-data", "shm-full"])
def test_a_sick_node_does_not_eat_the_search(lan, cluster, sick):
    """Every setting is measured on the healthy one, the baseline too; the other one is set aside, and every failure names it."""
    first, second = lan["first"], lan["second"]
    (first.project / "train.py").write_text(NEEDS_DATA)
    (first.home / "data").touch()
    if sick == "shm-full":
        (second.home / "data").touch()
        second.shell("dd if=/dev/zero of=/dev/shm/full bs=1M 2>/dev/null || true")
    done = cluster("search", "train.py:workload", *SEARCH, "--max-trials", "6", "--keep-going", "--address", "auto", "--out", sick)
    second.shell("rm -f /dev/shm/full ~/data")
    assert done.code == 0, done.stderr
    found = records(first.project / sick)
    assert {record["number"] for record in found if not record.get("failure_kind")} == set(range(6))
    failed = [record for record in found if record.get("failure_kind")]
    assert {record["hostname"] for record in failed} == {"second"}
    assert len(failed) <= 2
    assert "failed on second: " in done.stderr
    assert "note: no more trials of this search run on second: b16 w" in done.stderr
    assert "Set aside: second, because b16 w" in done.stdout
    assert json.loads((first.project / sick / "search.json").read_text())["set_aside"][0]["hostname"] == "second"


def test_a_baseline_that_no_host_manages_is_an_error(lan, cluster):
    """It is tried on both, and the exit code is not 0, though other settings worked."""
    (lan["first"].project / "train.py").write_text(TOY.replace("def __getitem__(self, index):", "def __getitem__(self, index):\n        import torch.utils.data as data\n        data.get_worker_info().id"))
    done = cluster("search", "train.py:workload", *SEARCH, "--max-trials", "4", "--address", "auto", "--out", "no-baseline")
    assert done.code == 1, done.stderr
    assert "your own setting failed, so there is nothing to compare the answer with: " in done.stderr
    assert "(on first, second)" in done.stderr
    assert (lan["first"].project / "no-baseline" / "best.json").exists()


def test_a_submitted_search_survives_its_head(lan, cluster):
    """Ray is killed on both machines and started anew; what the commands print is pasted as it stands. Takes minutes: two clusters."""
    first = lan["first"]
    (first.project / "train.py").write_text(TOY)

    def paste(command):
        return first.run(command, program=["bash", "-c"], timeout_s=280)

    sent = cluster("submit", "train.py:workload", *SEARCH, "--max-trials", "5", "--keep-going", "--submission-id", "mine", "--address", URL)
    assert sent.code == 0, sent.stderr
    run = first.home / "feedrate-runs" / "mine"
    assert eventually(lambda: len(records(run)) >= 2, within_s=200)
    for machine in (first, lan["second"]):
        machine.kill("ray::", "raylet", "gcs_server", "dashboard", "feedrate.search.head", "runtime_env")
    start_ray(lan, token=True)
    assert "mine  FAILED  " in cluster("runs", "--address", URL).stdout
    status = cluster("status", "mine", RAY_API_SERVER_ADDRESS=URL)
    way_on = status.stdout.splitlines()[-1].removeprefix("  carry on with: ")
    assert shlex.split(way_on)[:3] == ["RAY_AUTH_MODE=token", "feedrate", "resume"]
    again = paste(f"{way_on} --follow")
    assert again.code == 0, again.stderr
    for command in [line.strip() for line in again.stderr.splitlines() if line.startswith("  RAY_AUTH_MODE")]:
        assert paste(command).code == 0, command
    numbers = [record["number"] for record in records(run) if not record.get("retried")]
    assert sorted(set(numbers)) == sorted(numbers)
    assert len(numbers) == 5
    assert "root@first" in cluster("runs", "--address", URL).stdout


def test_a_node_that_cannot_run_a_task_is_left_out(lan, cluster):
    """Its disk is full, so that neither feedrate nor the folder can be unpacked there; it gets no trials, and is named with the reason."""
    first, second = lan["first"], lan["second"]
    (first.project / "train.py").write_text(TOY + "\n# another package than that of the tests before\n")
    second.shell("mount -t tmpfs -o size=16k tmpfs $(readlink -f /tmp/ray/session_latest)/runtime_resources")
    done = cluster("search", "train.py:workload", *SEARCH, "--max-trials", "3", "--address", "auto", "--out", "full")
    second.shell("umount -l $(readlink -f /tmp/ray/session_latest)/runtime_resources")
    assert done.code == 0, done.stderr
    assert "note: second is left out: OSError: [Errno 28] No space left on device" in done.stderr
    assert by_host(first.project / "full") == {"first": {None}}


def test_a_node_that_lacks_a_package_is_left_out(lan, cluster):
    """No supervisor could be started there. It is named with the package, and costs no setting."""
    first, second = lan["first"], lan["second"]
    (first.project / "train.py").write_text(TOY)
    package = Path(pathspec.__file__)
    second.shell(f"mount --bind /dev/null {package}")
    done = cluster("search", "train.py:workload", *SEARCH, "--max-trials", "3", "--address", "auto", "--out", "lacks-package")
    second.shell(f"umount -l {package}")
    assert done.code == 0, done.stderr
    assert "note: second is left out: ImportError: cannot import name" in done.stderr
    assert by_host(first.project / "lacks-package") == {"first": {None}}


def test_a_machine_that_is_no_node_is_told_so(lan, cluster):
    """The cluster answers, but Ray runs a driver only on a node."""
    laptop = lan["laptop"]
    laptop.shell("mkdir -p ~/.ray")
    (laptop.home / ".ray" / "auth_token").write_bytes((lan["first"].home / ".ray" / "auth_token").read_bytes())
    (laptop.project / "train.py").write_text(TOY)
    done = cluster("search", "train.py:workload", *SEARCH, "--address", "first:6379", machine="laptop")
    assert done.code == 2
    assert "a Ray cluster answers at --address first:6379, but this machine is not a node of it" in done.stderr
    assert not (laptop.project / "feedrate-runs").exists()


RANKS = """
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Rows(Dataset):
    def __len__(self):
        return 4096

    def __getitem__(self, index):
        return torch.full((8,), float(index)), index % 2


if __name__ == "__main__":
    dist.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(Rows(), batch_size=16, sampler=DistributedSampler(Rows()), num_workers=1)
    while True:
        for inputs, target in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), target).backward()
            optimizer.step()
"""


def test_ranks_on_several_machines_are_one_trial(lan, cluster):
    """Each trial takes both machines, and its answer says so. A rank that fails on one of them is named with its machine."""
    project = lan["first"].project
    (project / "ranks.py").write_text(RANKS)
    search = ["search", "--address", "auto", "--hosts-per-trial", "2", "--num-workers", "1..2", "--prefetch-factor", "2", "--persistent-workers", "true", "--max-trial-s", "3",
              "--max-trials", "2", "--no-confirm", "--wait", "0", "--out", "two"]  # fmt: skip
    done = cluster(*search, "--", "torchrun", "--nproc-per-node", "1", "ranks.py")
    assert done.code == 0, done.stderr
    assert "each trial on 2 hosts" in done.stderr
    for record in records(project / "two"):
        assert record.get("failure_kind") is None, record["failure_message"]
        assert [each["rank"] for each in record["ranks"]] == [0, 1]
    best = json.loads((project / "two" / "best.json").read_text())
    assert (best["scope"]["ranks_per_host"], best["scope"]["world_size"], best["throughput"]["per"]) == (1, 2, "world")
    refused = cluster(*search, "--force", "--", "torchrun", "--nnodes=2", "--nproc-per-node", "1", "ranks.py")
    assert refused.code == 2 and "leave --nnodes=2 out of the command" in refused.stderr
    (project / "ranks.py").write_text(RANKS.replace("            optimizer.zero_grad", "            if dist.get_rank() == 1:\n                raise ValueError('no more')\n            optimizer.zero_grad"))
    failed = cluster(*search, "--force", "--", "torchrun", "--nproc-per-node", "1", "ranks.py")
    assert failed.code == 1, failed.stderr
    assert re.search("on (first|second): rank 1: ranks.py raised ValueError: no more", failed.stderr), failed.stderr  # Ray chooses the host of rank 0
