"""Join or start a Ray cluster for the duration of a search.

Three habits of Ray matter here. Ray counts CPUs but does not enforce them, so the supervisor sets the CPU affinity. Ray workers run
at nice 15 and with OMP_NUM_THREADS set to the trial's CPUs; feedrate undoes both, because they would change the measured rates.
Ray's memory monitor can kill a whole run, so it is switched off on the nodes that feedrate starts.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from feedrate.search.engine.compat import quiet_ray_init, use_own_token
from feedrate.search.options import SearchOptions, UsageError
from feedrate.search.shipping.shipping import Shipment, shipment
from feedrate.search.terminal.ending import at_the_latest, handler_restored

OBJECT_STORE_BYTES = 100 * 1024**2
PROBE_S = 5.0
NODE_S = 3.0
"""Longest wait for this machine's node to appear, in case `ray start` is still running."""
NODE_ANSWER_S = 60
"""Longest wait for the cluster's list of nodes, as in Ray."""
AUTHENTICATE = (
    "Start the cluster with a token: ray get-auth-token --generate creates it, and RAY_AUTH_MODE=token, set on every node and where feedrate "
    "runs, requires it"
)
WRONG_TOKEN = (
    "refuses the token, or got none: set RAY_AUTH_MODE=token, and put the cluster's token into ~/.ray/auth_token, or name it with "
    "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
)
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets in the driver of a Ray Job."""
LONGEST_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
"""Longest path of a Unix socket of Ray, relative to the folder that Ray is given."""
SOCKET_PATH_BYTES = 107
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_WORKERS = {
    "RAY_worker_niceness": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_kill_child_processes_on_worker_exit": "0",  # a template (trainables/sandbox) ends by itself and then removes its folder
}
# If clusters are disabled, Ray takes 127.0.0.1 as the node's address and binds every socket to it. Otherwise it would listen on
# all interfaces, whatever _node_ip_address says
_LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_memory_monitor_refresh_ms": "0",
    # supervisors run with their own environment variables, so none of the worker processes that Ray starts in advance would be used
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    # Ray 2.60 serves three metrics pages that need no token. An invalid port keeps two of them closed
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}


@contextmanager
def cluster(options: SearchOptions, num_gpus: int, folder: str | None = None) -> Iterator[list[str]]:
    """Connect to the Ray cluster at `--address`, or start a local one, and disconnect or stop it afterwards.

    Yields notes about the cluster for the user. A joined cluster receives feedrate and the user's `folder` (shipping.py), except in
    a Ray Job, which has received them already. A local cluster listens only on the loopback interface, with token authentication.
    Its token is made anew for each search, and exists only in the environment of this process and its children.

    Raises:
        UsageError: there is no Ray at the address, or it has no token authentication although a token is required, or this
            process is already connected to a Ray cluster.
    """
    before = dict(os.environ)
    os.environ.update(_QUIET)
    os.environ.update(_WORKERS)
    if options.address is None:
        os.environ.update(_LOCAL)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        os.environ.pop("RAY_ADDRESS", None)
    import ray
    from ray._private import ray_constants

    if ray.is_initialized():
        _restore(before)
        raise UsageError("this process is already connected to a Ray cluster: call ray.shutdown() first")
    notes: list[str] = []
    has_clusters = ray_constants.ENABLE_RAY_CLUSTER
    with ExitStack() as stack:
        private = stack.enter_context(_private_folder()) if options.address is None else None
        stack.callback(_end, before, has_clusters)
        _forget_authentication()
        for name in ("ray", "ray.tune", "ray.train", "ray._private"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        stack.enter_context(_without_dumps())
        with _by_itself():
            if options.address is None:
                ray_constants.ENABLE_RAY_CLUSTER = False  # if ray was imported earlier, it did not see the variable in _LOCAL
                with _small(), quiet_ray_init():
                    ray.init(
                        "local",  # otherwise Ray joins a cluster that somebody else started on this machine
                        num_cpus=len(os.sched_getaffinity(0)),
                        num_gpus=num_gpus,
                        include_dashboard=False,
                        object_store_memory=OBJECT_STORE_BYTES,
                        log_to_driver=False,
                        logging_level=logging.CRITICAL,
                        _temp_dir=private,  # Ray leaves its logs and sockets behind; here they end with the search
                    )
            else:
                _join(options.address, notes, folder, require_token=options.require_token)
        stack.enter_context(_handling_sigterm())
        yield notes


def _end(environment: dict[str, str], has_clusters: bool) -> None:
    """Disconnect, end a local Ray, and restore this process as it was before."""
    import ray
    from ray._private import ray_constants

    with _no_second_interrupt():
        ray.shutdown()
    ray_constants.ENABLE_RAY_CLUSTER = has_clusters
    _restore(environment)
    _forget_authentication()


@contextmanager
def _private_folder() -> Iterator[str]:
    """Make a folder for a local Ray inside a folder that only this user may enter, and remove it afterwards.

    The outer folder is necessary because Ray 2.60 opens the folder that it is given to everybody (try_make_directory_shared). The
    path of a Unix socket has at most 107 bytes, so /tmp is used if the path of the user's own temporary folder is too long.
    """
    parent = tempfile.gettempdir()
    if len(os.fsencode(f"{parent}/feedrate-ray-00000000/r{LONGEST_SOCKET}")) > SOCKET_PATH_BYTES:
        parent = "/tmp"
    folder = tempfile.mkdtemp(prefix="feedrate-ray-", dir=parent)
    try:
        with at_the_latest(lambda: _end_at_once(folder)):
            yield f"{folder}/r"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end_at_once(folder: str) -> None:
    """Kill a local Ray that can no longer be shut down normally, because some of its processes are gone, and remove its folder."""
    from ray._private import worker

    node: Any = worker._global_node
    for _, process in node.live_processes() if node is not None else ():
        process.kill()
        process.wait(1)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _by_itself() -> Iterator[None]:
    """Make ray.init (2.60) start its processes in a session of their own, and keep it from replacing feedrate's SIGTERM handler.

    Without a session of its own, the local Ray would end before the search if a signal is sent to the command's process group; the
    search would then wait for it for a minute and be aborted. ray.init sets a SIGTERM handler that ends the process silently, and
    its C++ part sets another one that aborts it; neither removes the temporary folder.
    """
    from ray._private import services, utils

    popen = functools.partial(getattr(services, "ConsolePopen", None) or subprocess.Popen, start_new_session=True)
    with _replaced(services, "ConsolePopen", popen), _replaced(utils, "set_sigterm_handler", lambda handler: None):
        yield


@contextmanager
def _without_dumps() -> Iterator[None]:
    """Keep Ray 2.60 from printing the last lines of a raylet's log on the driver's standard output when a node is lost.

    The record of the trial that ran on the node says what the loss means for the search.
    """
    from ray._private import worker

    with _replaced(worker, "print_to_stdstream", lambda *given, **named: None):
        yield


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name, None)
    if before is None:  # another version of Ray lacks the name; tests/search/engine/test_ray_cluster.py fails if that matters
        yield
        return
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def _handling_sigterm() -> Iterator[None]:
    """Install the SIGTERM handler that was set before ray.init again; if there was none, install one that unwinds the stack and exits."""
    with handler_restored(signal.SIGTERM) as may_install:
        before = signal.getsignal(signal.SIGTERM)
        if may_install:
            signal.signal(signal.SIGTERM, before if callable(before) else _exit)
        yield


def _exit(number: int, frame: object) -> None:
    sys.exit(128 + number)


@contextmanager
def _no_second_interrupt() -> Iterator[None]:
    """Ignore Ctrl-C for the seconds in which Ray shuts down: a second Ctrl-C would leave Ray's processes and folder behind."""
    with handler_restored(signal.SIGINT) as may_install:
        if may_install:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        yield


@contextmanager
def _small() -> Iterator[None]:
    """Make Ray start as if ray[default] were not installed.

    Ray then starts sooner, does less work beside the trials, and its agents do not serve metrics pages to everybody on this machine.
    """
    name = "ray.dashboard.optional_deps"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # importing it fails
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def _join(address: str, notes: list[str], folder: str | None, *, require_token: bool) -> None:
    import ray
    from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, GcsClient, get_authentication_mode  # type: ignore[attr-defined]

    if address == "local":
        raise UsageError("address 'local': pass None instead, and the search starts and stops a local Ray")
    if address.startswith("ray://"):
        raise UsageError(
            f"--address {address}: Ray Client would run the search on another machine. Run feedrate on a node of the cluster, with --address auto"
        )
    try:
        host, _, port = _resolved(address).rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{port!r} is not a port")
        _probe(host.strip("[]"), int(port))
        if address == "auto":
            use_own_token()  # ray.init does the same, but too late for the checks below
        with_token = get_authentication_mode() == AuthenticationMode.TOKEN
        if with_token and not AuthenticationTokenLoader.instance().has_token():
            raise UsageError(f"the Ray cluster at --address {address} {WRONG_TOKEN}")  # Ray's own code would abort the process
        if require_token and _lets_anyone_in(f"{host}:{port}"):
            text = without_token(f"the Ray cluster at --address {address}")
            raise UsageError(f"{text} (--require-token). {AUTHENTICATE}")
        control_store = GcsClient(address=f"{host}:{port}")  # tries once; ray.init would try for 20 s and not report the cause
        _check_own_node(control_store, address, f"{host}:{port}")
        with shipment(folder) if JOB not in os.environ else nullcontext(Shipment({}, None)) as sent, quiet_ray_init():
            context = ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, runtime_env={"env_vars": _WORKERS, **sent.runtime_env})
        if context.dashboard_url and JOB not in os.environ:  # `feedrate submit` has printed both notes for a Job
            notes.append(f"Ray's dashboard: http://{context.dashboard_url}")
        if not with_token and JOB not in os.environ:
            notes.append(without_token(f"the Ray cluster at --address {address}"))
        notes += filter(None, [sent.said()])
    except ray.exceptions.AuthenticationError:
        raise UsageError(
            f"the Ray cluster at --address {address} {WRONG_TOKEN}"
        ) from None
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError, ray.exceptions.RayError) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"no Ray cluster answers at --address {address} ({reason}): start one there with `ray start --head`, or search on this machine only with --address local"
        ) from None


def _resolved(address: str) -> str:
    """Return the HOST:PORT that an address names; `auto` is the cluster to which this machine belongs.

    Raises:
        UsageError: this machine belongs to no cluster.
        OSError, ValueError: it is no address.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return canonicalize_bootstrap_address_or_die(address)
    except ConnectionError:
        if address != "auto":
            raise
        raise UsageError(
            "--address auto: this machine is a node of no Ray cluster. Make it one with `ray start --address=FIRST:6379`, or start the search on "
            "a node. `feedrate submit` needs no node here, and a search of this machine alone needs no --address"
        ) from None


def _check_own_node(control_store: Any, address: str, resolved: str) -> None:
    """Check within NODE_S seconds that this machine is a node of the cluster that answers at `address`, HOST:PORT in `resolved`.

    Ray looks for the node in the same way, for a raylet among the processes of this machine, but Ray 2.60 goes on for a minute.

    Raises:
        UsageError: it is none.
    """
    from ray._private.services import find_node_ids
    from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]

    end_s = time.monotonic() + NODE_S
    while True:
        if here := find_node_ids():  # type: ignore[no-untyped-call]
            nodes = control_store.get_all_node_info(timeout=NODE_ANSWER_S, state_filter=GcsNodeInfo.GcsNodeState.ALIVE)
            if any(node.hex() in here for node in nodes):
                return
        if time.monotonic() > end_s:
            raise UsageError(
                f"a Ray cluster answers at --address {address}, but this machine is not a node of it: make it one with "
                f"`ray start --address={resolved}`, or start the search on a node. `feedrate submit` needs no node here"
            )
        time.sleep(0.5)


def without_token(what: str) -> str:
    """Return the text of the warning that a Ray cluster lets everybody in without a token. `what` names the cluster."""
    return f"{what} does not ask for a token: anyone who can reach it can run code on the cluster"


def _lets_anyone_in(address: str) -> bool:
    """Return whether the control store (GCS) at HOST:PORT answers without a token.

    Ray reads its token once per process, so another process asks.
    """
    ask = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
    hidden = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"RAY_AUTH_MODE": "disabled"}
    asked = subprocess.run([sys.executable, "-P", "-c", ask, address], env=environment, capture_output=True, timeout=60, check=False)
    return asked.returncode == 0


def _probe(host: str, port: int) -> None:
    """Check within PROBE_S seconds that a server there speaks HTTP/2, as Ray does; ray.init would try for many minutes.

    Raises:
        OSError: no such server answers.
    """
    with socket.create_connection((host, port), timeout=PROBE_S) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # empty SETTINGS
        head = connection.recv(9, socket.MSG_WAITALL)
    if len(head) < 9 or head[3] != 4:
        raise OSError("what listens there is not Ray")


def _forget_authentication() -> None:
    """Make Ray read token and authentication mode from the environment again; otherwise a process keeps the first ones it read."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


def _restore(environment: dict[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
