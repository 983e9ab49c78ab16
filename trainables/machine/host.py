"""The machine that a trial runs on: its identity, its CPU budget, its facts."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import socket
from collections.abc import Sequence
from pathlib import Path

from feedrate.trainables.machine import cgroup

TOPOLOGY = Path("/sys/devices/system/cpu")


def host_id() -> str:
    """Return the identity of this machine: `FEEDRATE_HOST_ID` (for tests), or a hash of the kernel's boot id and the host name.

    Two containers on one machine share the boot id but not /tmp, so neither sees the other's lock; their host names give
    them different identities.
    """
    named = os.environ.get("FEEDRATE_HOST_ID")
    if named:
        return named
    boot = Path("/proc/sys/kernel/random/boot_id")
    text = (boot.read_text() if boot.exists() else "") + socket.gethostname()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def share_of_cpus(gpus: Sequence[int], num_gpus: int, num_cpus: int | None = None, topology: Path = TOPOLOGY) -> set[int]:
    """Return the CPUs for the given GPUs of this host, of which each gets the same number of CPUs and none shares a CPU with another.

    Hyper-threads of a core, and cores of a socket, stay together as far as the numbers allow.

    Args:
        gpus: numbers of the trial's GPUs on this host, from 0.
        num_gpus: number of GPUs in the host.
        num_cpus: the largest number of CPUs to return; None returns all that belong to the GPUs.
        topology: folder in which the kernel describes socket and core of each CPU.
    """
    allowed = sorted(os.sched_getaffinity(0), key=lambda cpu: (_place(cpu, topology), cpu))
    each = len(allowed) // num_gpus
    mine = [cpu for gpu in sorted(gpus) for cpu in allowed[gpu * each : (gpu + 1) * each]]
    return set(mine[:num_cpus])


def _place(cpu: int, topology: Path) -> tuple[int, ...]:
    """Return socket and core of a CPU; empty if the kernel does not report them."""
    folder = topology / f"cpu{cpu}" / "topology"
    try:
        return tuple(int((folder / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):
        return ()


def cpu_budget(allocated: int | None = None) -> tuple[int, str]:
    """Return the number of CPUs that this process may use, and the limit that decides it: affinity, cgroup (quota) or ray.

    Affinity does not reflect a container's quota, and the quota does not reflect affinity. Ray only counts CPUs: feedrate
    enforces Ray's share by affinity, so if the affinity equals that share, the limit is Ray's.

    Args:
        allocated: CPUs that Ray reserved for this trial; None if it does not run under Ray.
    """
    affinity = len(os.sched_getaffinity(0))
    budget, source = affinity, "affinity"
    if allocated is not None and (allocated < affinity or allocated == affinity < (os.cpu_count() or 1)):
        budget, source = max(1, allocated), "ray"
    quota = cgroup_quota()
    if quota is not None and quota < budget:
        budget, source = max(1, math.floor(quota)), "cgroup"
    return budget, source


def cgroup_quota(root: Path = cgroup.ROOT, membership: Path = cgroup.MEMBERSHIP) -> float | None:
    """Return the number of CPUs that the smallest quota up the hierarchy allows; None without a quota. Reads cgroup v2 and v1."""
    quotas = [_quota(folder) for folder in cgroup.folders("cpu", root, membership)]
    return min((each for each in quotas if each is not None), default=None)


def _quota(folder: Path) -> float | None:
    """Return one group's own quota: cpu.max of v2, or the cfs quota of v1."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    try:
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        return None if quota_us <= 0 else quota_us / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None


def cpu_model() -> str:
    """Return the processor's name from the kernel."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
