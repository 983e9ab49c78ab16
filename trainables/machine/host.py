"""The machine a trial runs on: its identity, its CPU budget, its facts."""

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
    """Identity of this machine: `FEEDRATE_HOST_ID` (tests), else a hash of the kernel's boot id and the host name.

    Two containers on one machine share the boot id but not /tmp; they are told apart by their names and do not see
    each other's lock.
    """
    named = os.environ.get("FEEDRATE_HOST_ID")
    if named:
        return named
    boot = Path("/proc/sys/kernel/random/boot_id")
    text = (boot.read_text() if boot.exists() else "") + socket.gethostname()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def share_of_cpus(gpus: Sequence[int], num_gpus: int, num_cpus: int | None = None, topology: Path = TOPOLOGY) -> set[int]:
    """The CPUs of this host that belong to some of its GPUs: every GPU has equally many, and no two have one in common.

    Hyper-threads of a core, and cores of a socket, stay together as far as the numbers allow.

    Args:
        gpus: numbers of the trial's GPUs on this host, from 0.
        num_gpus: that the host has.
        num_cpus: no more than these; None takes all that belong to the GPUs.
        topology: where the kernel tells which CPUs are neighbours.
    """
    allowed = sorted(os.sched_getaffinity(0), key=lambda cpu: (_place(cpu, topology), cpu))
    each = len(allowed) // num_gpus
    mine = [cpu for gpu in sorted(gpus) for cpu in allowed[gpu * each : (gpu + 1) * each]]
    return set(mine[:num_cpus])


def _place(cpu: int, topology: Path) -> tuple[int, ...]:
    """Socket and core; the same for all where the kernel does not tell."""
    folder = topology / f"cpu{cpu}" / "topology"
    try:
        return tuple(int((folder / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):
        return ()


def cpu_budget(allocated: int | None = None) -> tuple[int, str]:
    """CPUs this process may use and the limit that says so: affinity, cgroup (quota) or ray.

    Affinity does not see a container's quota and the quota does not see affinity (MEASURING.md 2.8). Ray only counts
    CPUs; feedrate enforces its share by affinity, so that an affinity as small as that share is Ray's.

    Args:
        allocated: CPUs that Ray reserved for this trial; None where Ray has no part in it.
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
    """CPUs that the quotas allow, the smallest up the hierarchy; None without one. Reads cgroup v2 and v1."""
    quotas = [_quota(folder) for folder in cgroup.folders("cpu", root, membership)]
    return min((each for each in quotas if each is not None), default=None)


def _quota(folder: Path) -> float | None:
    """One group's own quota: v2's cpu.max, else v1's cfs quota."""
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
    """The processor's name as the kernel gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
