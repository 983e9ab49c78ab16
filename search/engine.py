"""Joins or starts a Ray cluster, and finds what a trial may use there.

Differences that matter: Ray counts CPUs but does not enforce them (the supervisor sets the affinity); Ray workers run
at nice 15 and with OMP_NUM_THREADS of the trial's CPUs (both undone, they would change what is measured); Ray's
memory monitor kills whole runs (switched off on nodes that we start).
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from feedrate.search.options import SearchOptions, UsageError

OBJECT_STORE_BYTES = 100 * 1024**2
PROBE_S = 5.0
AUTHENTICATE = (
    "Start it with one: ray get-auth-token --generate makes it, and RAY_AUTH_MODE=token, set on every node and where feedrate runs, asks for it"
)
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_WORKERS = {"RAY_worker_niceness": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
# Without "clusters" Ray takes 127.0.0.1 as the node's address, and so binds every socket to it; it would listen on all
# interfaces otherwise, whatever _node_ip_address says
_LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_memory_monitor_refresh_ms": "0",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What one trial reserves, and how many trials can run at once."""

    cpus: int
    gpus: int
    trial_slot: bool
    """Nodes declare the resource `trial_slot`, one a host."""
    num_slots: int
    where: str
    """For people: host, CPUs and GPUs."""


@contextmanager
def cluster(options: SearchOptions, num_gpus: int) -> Iterator[list[str]]:
    """A Ray cluster for the length of a search: the one at `--address`, or a local one started and stopped here; gives what the user should know of it.

    The local one listens on the loopback interface alone, and with token authentication; the token is made anew, and
    lives in the environment of this process and its children only.

    Raises:
        UsageError: there is no Ray at the address, it asks nobody for a token and that was not allowed, or this
            process is connected to one already.
    """
    before = dict(os.environ)
    folder = tempfile.mkdtemp(prefix="feedrate-ray-")
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
        shutil.rmtree(folder)
        raise UsageError("this process is connected to a Ray already: call ray.shutdown() first")
    notes: list[str] = []
    has_clusters = ray_constants.ENABLE_RAY_CLUSTER
    try:
        _forget_authentication()
        for name in ("ray", "ray.tune", "ray.train", "ray._private"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if options.address is None:
            ray_constants.ENABLE_RAY_CLUSTER = False  # as in _LOCAL, where ray was imported before
            ray.init(
                "local",  # without it Ray joins a cluster that somebody else started on this machine
                num_cpus=len(os.sched_getaffinity(0)),
                num_gpus=num_gpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                _temp_dir=folder,  # Ray leaves its logs and sockets behind; here they end with the search
            )
        else:
            _join(options.address, notes, allow_unauthenticated=options.allow_unauthenticated)
        yield notes
    finally:
        ray.shutdown()
        ray_constants.ENABLE_RAY_CLUSTER = has_clusters
        _restore(before)
        _forget_authentication()
        shutil.rmtree(folder, ignore_errors=True)


def _join(address: str, notes: list[str], *, allow_unauthenticated: bool) -> None:
    import ray
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    if address == "local":
        raise UsageError("--address local: leave it out, a local Ray is then started and stopped by the command")
    if address.startswith("ray://"):
        raise UsageError(
            f"--address {address}: Ray Client would run the search elsewhere; run feedrate on a node of the cluster, with --address auto"
        )
    try:
        host, _, port = canonicalize_bootstrap_address_or_die(address).rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{port!r} is not a port")
        _probe(host.strip("[]"), int(port))
        if _asks_nobody(f"{host}:{port}"):
            text = f"the Ray cluster at --address {address} asks nobody for a token: whoever reaches its ports runs code on it"
            if not allow_unauthenticated:
                raise UsageError(f"{text}. {AUTHENTICATE}, or join it as it is with --allow-unauthenticated")
            notes.append(f"{text} (--allow-unauthenticated)")
        GcsClient(address=f"{host}:{port}")  # tries once, where ray.init tries for 20 s and does not say why
        ray.init(
            address,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env={"env_vars": _WORKERS},
        )
    except ray.exceptions.AuthenticationError:
        raise UsageError(
            f"the Ray cluster at --address {address} refuses the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, to its own"
        ) from None
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"no Ray cluster answers at --address {address} ({reason}): start one there with `ray start --head`, or leave --address out for a local one"
        ) from None


def _asks_nobody(address: str) -> bool:
    """Whether a cluster lets in who has no token."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    before = dict(os.environ)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        os.environ.pop(name, None)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    _forget_authentication()
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # Ray's own code writes there that it was refused, which is what should be
    try:
        GcsClient(address=address)
        return True
    except ray.exceptions.AuthenticationError:
        return False
    finally:
        os.dup2(stderr, 2)
        for descriptor in (stderr, nowhere):
            os.close(descriptor)
        _restore(before)
        _forget_authentication()


def _probe(host: str, port: int) -> None:
    """See in seconds whether something there speaks HTTP/2, as Ray does; ray.init would try for many minutes.

    Raises:
        OSError: nothing does.
    """
    with socket.create_connection((host, port), timeout=PROBE_S) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # empty SETTINGS
        head = connection.recv(9, socket.MSG_WAITALL)
    if len(head) < 9 or head[3] != 4:
        raise OSError("what listens there is not Ray")


def _forget_authentication() -> None:
    """Have Ray read token and mode from the environment again; it keeps the first ones of a process otherwise."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


def _restore(environment: dict[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


def place(options: SearchOptions) -> Placement:
    """What a trial reserves on the connected cluster.

    Raises:
        UsageError: no node has what was asked for; the message says what there is.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    slots = any("trial_slot" in node["Resources"] for node in nodes)
    nodes = [node for node in nodes if node["Resources"].get("CPU") and (not slots or "trial_slot" in node["Resources"])]
    if not nodes:
        raise UsageError("no node of the cluster has a CPU for a trial: add one, or search on this machine alone")
    most_gpus = max(int(node["Resources"].get("GPU", 0)) for node in nodes)
    gpus = options.gpus_per_trial if options.gpus_per_trial is not None else min(1, most_gpus)
    if gpus > most_gpus:
        raise UsageError(
            f"--gpus-per-trial {gpus}: the largest node has {most_gpus} GPU{'s' * (most_gpus != 1)}. Ask for fewer, or join a cluster with --address"
        )
    fit = [node for node in nodes if int(node["Resources"].get("GPU", 0)) >= gpus]

    def share(node: dict[str, Any]) -> int:
        cpus, node_gpus = int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))
        return cpus * gpus // node_gpus if gpus else cpus

    most_cpus = max(int(node["Resources"].get("CPU", 0)) for node in fit)
    # one constant bundle for every trial, so that the smallest eligible node can run it (and actors are reused)
    cpus = options.cpus_per_trial or max(min(share(node) for node in fit), 1)
    if cpus > most_cpus:
        raise UsageError(
            f"--cpus-per-trial {cpus}: the largest node{' with that many GPUs' * (gpus > 1)} has {most_cpus} CPUs. Ask for fewer"
        )
    fit = [node for node in fit if int(node["Resources"].get("CPU", 0)) >= cpus]
    first = fit[0]
    total = int(first["Resources"].get("CPU", 0))
    where = f"{first['NodeManagerHostname']} · " + (
        f"{gpus} of {int(first['Resources'].get('GPU', 0))} GPUs" if gpus else "CPU only, no GPU is used"
    )
    where += f", {cpus} of {total} CPUs"
    where += f" · {len(fit)} hosts" if len(fit) > 1 else ""
    return Placement(
        cpus=cpus,
        gpus=gpus,
        trial_slot=slots,
        num_slots=len({node["NodeManagerHostname"] for node in fit}),
        where=where,
    )
