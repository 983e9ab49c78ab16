"""ray_cluster.py: a local Ray that nobody else can reach, gone when the search is; what a trial may use on any cluster."""

import contextlib
import ipaddress
import json
import os
import shutil
import socket
import stat
import struct
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from conftest import Command

from feedrate.search.engine.ray_cluster import LONGEST_SOCKET, _private_folder

# a search's cluster: open until there is a file "stop" in its folder; then what runs on it raises
HOLDER = """
import json, os, sys, time
from feedrate.search.engine.ray_cluster import cluster
from feedrate.search.options import SearchOptions, UsageError
from feedrate.search.engine.reservation import place

before = dict(os.environ)
try:
    with cluster(SearchOptions(), 0):
        import ray

        @ray.remote
        class Worker:
            def facts(self):
                return {"nice": os.nice(0), "monitor_ms": os.environ["RAY_memory_monitor_refresh_ms"]}

        worker = Worker.remote()
        facts = ray.get(worker.facts.remote())
        facts["folder"] = ray._private.worker._global_node.get_temp_dir_path()
        facts |= {"address": ray.get_runtime_context().gcs_address, "token": os.environ["RAY_AUTH_TOKEN"]}
        facts["where"] = place(SearchOptions()).where
        try:
            with cluster(SearchOptions(), 0):
                pass
        except UsageError as error:
            facts["twice"] = str(error)
        facts["still_connected"] = ray.is_initialized()
        from ray._private.utils import publish_error_to_driver
        publish_error_to_driver("lost", "the last lines of a raylet's log", ray._private.worker.global_worker.gcs_client)
        time.sleep(1)
        print(json.dumps(facts), flush=True)
        while not os.path.exists("stop"):
            time.sleep(0.05)
        raise LookupError("the search failed")
except LookupError:
    print(json.dumps({"environment_restored": dict(os.environ) == before}), flush=True)
    while not os.path.exists("end"):
        time.sleep(0.05)
"""
JOINER = """
import os, sys
from feedrate.search.engine.ray_cluster import cluster
from feedrate.search.options import SearchOptions, UsageError
from feedrate.search.engine.reservation import place
try:
    folder = "project" if "--folder" in sys.argv else None
    with cluster(SearchOptions(address=sys.argv[1], require_token="--require-token" in sys.argv), 0, folder) as notes:
        print("joined", place(SearchOptions()).cpus, *notes)
        if folder is not None:
            import ray
            print(*sorted(ray.get(ray.remote(lambda: os.listdir()).remote())))
except UsageError as error:
    print("refused:", error)
"""
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray takes 127.0.0.1 as it is, instead of the address of a network interface."""

# a harmless method of each of Ray's gRPC services
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetSystemConfig",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/NumPendingTasks",
)
OK, UNIMPLEMENTED, UNAUTHENTICATED = 0, 12, 16


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A local cluster as a search starts it, in another process: a Command with .facts."""
    cwd = tmp_path_factory.mktemp("cluster")
    (cwd / "holder.py").write_text(HOLDER)
    (cwd / "home").mkdir()
    # a token and an address of the user's own cluster, which is not this one
    theirs = {"RAY_AUTH_TOKEN": "f" * 64, "RAY_ADDRESS": "127.0.0.1:1"}
    command = Command("holder.py", cwd=cwd, home=cwd / "home", program=[sys.executable], **theirs)
    try:
        command.facts = json.loads(command.until(lambda: command.stdout.endswith("\n") and command.stdout))
        yield command
    finally:
        command.end()


def listening(command):
    """The sockets that processes of a command listen on: [(name, ip, port)]."""
    found, theirs = [], command.alive()
    for connection in psutil.net_connections(kind="inet"):
        if connection.status == psutil.CONN_LISTEN and connection.pid in theirs:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append((psutil.Process(connection.pid).name(), connection.laddr.ip, connection.laddr.port))
    return found


def is_loopback(ip):
    address = ipaddress.ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def grpc_status(port, method, token):
    """Call a gRPC method with an empty message over a plain socket; the status, or None where no gRPC answers."""

    def frame(kind, flags, stream, body=b""):
        return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body

    headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "x"}
    headers |= {"content-type": "application/grpc", "te": "trailers"}
    headers |= {"authorization": f"Bearer {token}"} if token else {}
    block = b""
    for text in headers.items():
        block += b"\0" + b"".join(bytes([len(word)]) + word.encode() for word in text)  # literal, not indexed
    request = frame(4, 0, 0) + frame(1, 4, 1, block) + frame(0, 1, 1, bytes(5))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + request)
        answer = b""
        while b"grpc-status" not in answer[:-2]:
            received = connection.recv(65536)
            if not received:
                return None
            answer += received
    value = answer[answer.index(b"grpc-status") + len(b"grpc-status") :]
    return int(value[1 : 1 + value[0]])


def http_status(port, token):
    """Ask the runtime environment agent what it has; the HTTP status."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"http://127.0.0.1:{port}/get_runtime_envs_info"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, b"", headers), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_every_listening_port_is_loopback(local):
    """Of the driver, the control store, the node's manager, its agents and the workers; from outside there is no Ray."""
    sockets = listening(local)
    assert {"gcs_server", "raylet", "ray::Worker"} <= {name for name, _, _ in sockets}
    assert len(sockets) >= 5
    assert [found for found in sockets if not is_loopback(found[1])] == []
    assert local.facts["address"].startswith("127.0.0.1:")


def test_every_listening_port_asks_for_the_token(local):
    """Other users of this machine reach the loopback ports: without the token, or with another, they are refused."""
    token, wrong = local.facts["token"], "0" * 64
    assert len(token) == 64
    assert token != "f" * 64
    served = set()
    for name, _, port in listening(local):
        if grpc_status(port, "/none/None", token) is None:
            assert (http_status(port, None), http_status(port, wrong), http_status(port, token)) == (401, 403, 200), name
            continue
        served_here = [method for method in METHODS if grpc_status(port, method, None) != UNIMPLEMENTED]
        assert len(served_here) == 1, (name, port, served_here)
        for method in served_here:
            assert grpc_status(port, method, None) == UNAUTHENTICATED, (name, method)
            assert grpc_status(port, method, wrong) == UNAUTHENTICATED, (name, method)
            assert grpc_status(port, method, token) not in (UNAUTHENTICATED, UNIMPLEMENTED), (name, method)
        served.update(served_here)
    assert served == set(METHODS)
    assert local.process.poll() is None


@pytest.mark.parametrize("token", [None, "", "0" * 64, "the cluster's"])
def test_a_cluster_is_joined_with_its_token_only(local, start, token):
    """--address takes the token where Ray looks for it, and says in one sentence that it is missing or wrong."""
    if token == "the cluster's":
        token = local.facts["token"]
    environment = LOOPBACK | ({} if token is None else {"RAY_AUTH_MODE": "token"}) | ({"RAY_AUTH_TOKEN": token} if token else {})
    joiner = start("-c", JOINER, local.facts["address"], program=[sys.executable], **environment)
    joiner.wait()
    if token == local.facts["token"]:
        assert joiner.stderr == ""
        assert joiner.stdout == f"joined {len(os.sched_getaffinity(0))}\n"
    else:
        assert joiner.stdout == (
            f"refused: the Ray cluster at --address {local.facts['address']} refuses the token, or got none: set RAY_AUTH_MODE=token, "
            "and put the cluster's token into ~/.ray/auth_token, or name it with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH\n"
        )
    assert local.process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a namespace")
def test_a_process_that_sees_no_node_is_told_so_within_seconds(local, start):
    """Ray's processes are not among those of another machine, or of another container: Ray itself would look for a minute."""
    other = [shutil.which("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable]
    environment = LOOPBACK | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": local.facts["token"]}
    joiner = start("-c", JOINER, local.facts["address"], program=other, **environment)
    assert joiner.wait(50) == 0, joiner.stderr
    address = local.facts["address"]
    assert joiner.stdout == (
        f"refused: a Ray cluster answers at --address {address}, but this machine is not a node of it: make it one with `ray start "
        f"--address={address}`, or start the search on a node. `feedrate submit` needs no node here\n"
    )
    joiner = start("-c", JOINER, "auto", program=[*other[:-1], "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /tmp && exec "$0" "$@"', sys.executable], **environment)
    assert joiner.wait(50) == 0, joiner.stderr
    assert joiner.stdout.startswith("refused: --address auto: this machine is a node of no Ray cluster. Make it one with `ray start")


def test_the_users_folder_is_sent_to_a_joined_cluster(local, start, tmp_path):
    """A task finds its files where Ray starts it, without what may hold a secret."""
    (tmp_path / "project").mkdir()
    for name in ("train.py", ".env"):
        (tmp_path / "project" / name).write_text("x = 1")
    environment = LOOPBACK | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": local.facts["token"]}
    joiner = start("-c", JOINER, local.facts["address"], "--folder", program=[sys.executable], **environment)
    assert joiner.wait() == 0, joiner.stderr
    joined, files = joiner.stdout.splitlines()
    assert "not sent to the cluster: .env (may hold a secret); with .feedrateignore you can add to this list" in joined
    assert files == "train.py"


OPEN = """
import os, time
import ray
ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
while not os.path.exists("stop"):
    time.sleep(0.05)
"""


def test_a_cluster_without_tokens_is_joined_with_a_warning(start, local, tmp_path):
    """And refused where a token is required, with the way out; one that asks for tokens is not."""
    cluster = start("-c", OPEN, program=[sys.executable], RAY_AUTH_MODE="disabled", **LOOPBACK)
    address = cluster.until(lambda: cluster.stdout.endswith("\n") and cluster.stdout.strip())
    warning = f"the Ray cluster at --address {address} does not ask for a token: anyone who can reach it can run code on the cluster"
    joiner = start("-c", JOINER, address, program=[sys.executable], **LOOPBACK)
    joiner.wait()
    assert joiner.stdout == f"joined 1 {warning}\n"
    joiner = start("-c", JOINER, address, "--require-token", program=[sys.executable], **LOOPBACK)
    joiner.wait()
    assert joiner.stdout.startswith(f"refused: {warning} (--require-token). Start the cluster with a token: ray get-auth-token --generate")
    (tmp_path / "stop").touch()
    cluster.wait()
    token = LOOPBACK | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": local.facts["token"]}
    joiner = start("-c", JOINER, local.facts["address"], "--require-token", program=[sys.executable], **token)
    joiner.wait()
    assert joiner.stdout == f"joined {len(os.sched_getaffinity(0))}\n"


def test_rays_folder_is_the_users_alone(local):
    """Ray opens the folder that it is given to everybody: it lies in one that nobody else may enter, and its sockets' paths are short."""
    folder = Path(local.facts["folder"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777, "Ray leaves its folder alone: the one around it is not needed any more"
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert folder.parent.name.startswith("feedrate-ray-")
    sockets = [path for path in folder.rglob("*") if path.is_socket()]
    assert len(sockets) >= 2
    assert max(len(str(path)) for path in sockets) <= len(f"{folder}{LONGEST_SOCKET}") <= 107


def test_rays_processes_are_in_sessions_of_their_own(local):
    """A signal to the search's process group does not reach them."""
    processes = [psutil.Process(pid) for pid in local.alive() if pid != local.process.pid]
    assert {"gcs_server", "raylet"} <= {process.name() for process in processes}
    assert not [process for process in processes if os.getsid(process.pid) == local.process.pid]


def test_a_long_path_of_temporary_folders_is_not_used(tmp_path, monkeypatch):
    """A socket in it could not be made."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with _private_folder() as folder:
        assert Path(folder).parent.parent == Path("/tmp")
    assert not Path(folder).parent.exists()


def test_workers_are_as_nice_as_the_users_own_program(local):
    """And Ray's memory monitor, which ends whole searches, is off."""
    assert (local.facts["nice"], local.facts["monitor_ms"]) == (os.nice(0), "0")
    assert local.facts["where"].endswith(f"CPU only, no GPU is used, {len(os.sched_getaffinity(0))} of "
                                         f"{len(os.sched_getaffinity(0))} CPUs")  # fmt: skip


def test_what_ray_prints_of_lost_nodes_is_left_out(local):
    """The last lines of a raylet's log belong to nobody's answer, and less to a program that reads it."""
    assert "raylet" not in local.stdout + local.stderr


def test_a_second_ray_in_one_process_is_refused(local):
    """And the first is left alone."""
    assert local.facts["twice"] == "this process is already connected to a Ray cluster: call ray.shutdown() first"
    assert local.facts["still_connected"] is True


def test_nothing_of_ray_is_left_when_the_search_fails(local):
    """No process but the user's own, whose environment is as it was; no token was written to a file."""
    (local.cwd / "stop").touch()
    local.until(lambda: local.stdout.count("\n") == 2)
    assert json.loads(local.stdout.splitlines()[1]) == {"environment_restored": True}
    assert set(local.alive()) == {local.process.pid}
    assert list((local.cwd / "home").iterdir()) == []
    (local.cwd / "end").touch()
    assert local.wait() == 0


IN_TURN = """
import json, os, sys
import ray
from feedrate.search.engine.ray_cluster import cluster
from feedrate.search.options import SearchOptions

def value():
    return os.environ.get("RAY_AUTH_TOKEN")

tokens = []
for _ in range(2):
    with cluster(SearchOptions(), 0):
        tokens.append(ray.get(ray.remote(value).remote()))
ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
tokens.append(ray.get(ray.remote(value).remote()))
ray.shutdown()
print(json.dumps(tokens))
"""


@pytest.mark.slow
def test_searches_in_turn_in_one_process(start, tmp_path):
    """Each has a token of its own, and the user's own Ray works after them, also where ray was imported before."""
    command = start("-c", IN_TURN, program=[sys.executable], HOME=str(tmp_path))
    assert command.wait() == 0, command.stderr
    first, second, own = json.loads(command.stdout.splitlines()[-1])
    assert len({first, second}) == 2
    assert own is None
    assert command.alive() == {}


PLACES = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from feedrate.search.options import SearchOptions, UsageError
from feedrate.search.engine.reservation import place

small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, **small})
ray.init(cluster.address, log_to_driver=False)

def say(**options):
    try:
        found = place(SearchOptions(**options))
        said = [found.cpus, found.gpus, found.trial_slot, found.num_slots]
    except UsageError as error:
        said = str(error)
    print(json.dumps(said), flush=True)

say()
say(cpus_per_trial=1)
say(cpus_per_trial=3)
say(gpus_per_trial=1)
cluster.add_node(num_cpus=8, num_gpus=2, **small)
cluster.wait_for_nodes()
say()
say(gpus_per_trial=2)
say(gpus_per_trial=3)
say(gpus_per_trial=2, cpus_per_trial=9)
say(gpus_per_trial=0)
cluster.add_node(num_cpus=4, num_gpus=4, resources={"trial_slot": 1}, **small)
cluster.wait_for_nodes()
say()
say(gpus_per_trial=3)
say(gpus_per_trial=5)
say(gpus_per_trial=0)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_what_a_trial_reserves(start):
    """GPUs as asked, one where there is any; its share of the node's CPUs; only nodes with a trial_slot, where there are some."""
    environment = LOOPBACK | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    command = start("-c", PLACES, program=[sys.executable], **environment)
    assert command.wait() == 0, command.stderr
    said = [json.loads(line) for line in command.stdout.splitlines()]
    alone, with_gpus, with_slots = said[:4], said[4:9], said[9:]
    # cpus, gpus, trial_slot, num_slots: all nodes are on this host, which measures one trial at a time
    assert alone == [
        [2, 0, False, 1],
        [1, 0, False, 1],
        "--cpus-per-trial 3: the largest node has 2 CPUs. Ask for fewer",
        "--gpus-per-trial 1: the largest node has 0 GPUs. Ask for fewer, or join a cluster with --address",
    ]
    assert with_gpus == [
        [4, 1, False, 1],
        [8, 2, False, 1],
        "--gpus-per-trial 3: the largest node has 2 GPUs. Ask for fewer, or join a cluster with --address",
        "--cpus-per-trial 9: the largest node with that many GPUs has 8 CPUs. Ask for fewer",
        [2, 0, False, 1],
    ]
    assert with_slots == [
        [1, 1, True, 1],
        [3, 3, True, 1],
        "--gpus-per-trial 5: the largest node has 4 GPUs. Ask for fewer, or join a cluster with --address",
        [4, 0, True, 1],
    ]
