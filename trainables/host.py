"""The machine a trial runs on: its identity, its CPU budget, its facts, and the lock that lets one trial measure at a time."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import platform
import socket
import time
from collections.abc import Callable
from pathlib import Path

from feedrate.trainables import cgroup

LOCK_FOLDER = Path("/tmp")


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


PATIENCE_S = 1.0


class HostLock:
    """One measuring trial at a time on a host, also between searches and users.

    An flock is held by every process that inherited the open file, so it is free only when the last loader worker of
    a trial is gone, however the trial ended. A crash leaves an empty file, which holds nothing.
    """

    def __init__(self) -> None:
        name = hashlib.sha256(host_id().encode()).hexdigest()[:16]
        self.path = LOCK_FOLDER / f"feedrate-host-{name}.lock"
        self._descriptor: int | None = None

    def acquire(self, on_wait: Callable[[], None]) -> None:
        """Take the lock, however long it takes; `on_wait` is called once if somebody else keeps it for a second."""
        flags = os.O_RDONLY | os.O_NOFOLLOW
        try:
            descriptor = os.open(self.path, flags)
        except FileNotFoundError:
            descriptor = os.open(self.path, flags | os.O_CREAT, 0o644)
            os.fchmod(descriptor, 0o644)  # others must be able to open it, whatever our umask
        self._descriptor = descriptor
        begun, waited = time.monotonic(), False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                # the last trial's own workers may still be ending
                if not waited and time.monotonic() - begun > PATIENCE_S:
                    on_wait()
                    waited = True
                time.sleep(0.05)

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


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
