"""The resources that a trial's process tree uses: memory, open files, /dev/shm and CPU time, read from /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def tree_pids(root: int | None = None) -> list[int]:
    """Return a process and all its descendants; without an argument, this process and its own.

    The kernel's list of children takes 0.05 ms per process; psutil would read every process of the machine.
    """
    root = os.getpid() if root is None else root
    pids, unseen = [], [root]
    while unseen:
        pid = unseen.pop()
        pids.append(pid)
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                try:
                    unseen += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split())
                except FileNotFoundError:
                    if pid == root and thread == str(pid):  # a kernel without CONFIG_PROC_CHILDREN
                        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return pids


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory and open files of a process tree."""

    pss_bytes: int
    """Proportional set size: each shared page is divided by the number of its users, so that sums are correct."""
    uss_bytes: int
    """Unique set size: pages that no other process uses."""
    max_open_files: int = 0
    """Open file descriptors of the process with the most, within the tree."""


def trees(roots: Collection[int]) -> list[int]:
    """Return this process, these ones, and all their descendants."""
    found = tree_pids()
    for root in roots:
        found += [pid for pid in tree_pids(root) if pid not in found]
    return found


def tree_memory(roots: Collection[int] = ()) -> Memory | None:
    """Return the memory of this process, of `roots` and of all their descendants; None if the kernel does not report it.

    The kernel walks every page table, which takes a few milliseconds per GB, so do not call this within a window.
    """
    pss = uss = most = 0
    for pid in trees(roots):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)
            full = process.memory_full_info()
            pss, uss = pss + full.pss, uss + full.uss
            most = max(most, process.num_fds())
    return Memory(pss_bytes=pss, uss_bytes=uss, max_open_files=most) if pss else None


def growth_bytes_per_batch(first: Memory | None, last: Memory | None, num_batches: int) -> float | None:
    """Return the memory that each batch adds for good: forked workers gradually copy the dataset's pages as they touch them.

    Args:
        first: shortly before the windows began, after every worker had delivered a batch.
        last: when the windows ended.
        num_batches: batches consumed between the two.

    Returns:
        Growth of the USS per batch, negative if it shrank; None if one of the two is not known.
    """
    if first is None or last is None or num_batches < 1:
        return None
    return (last.uss_bytes - first.uss_bytes) / num_batches


def shm_used_bytes() -> int | None:
    """Return the bytes that all processes together use in /dev/shm; None if there is no /dev/shm."""
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return None
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def tree_cpu_s() -> float:
    """Return the CPU seconds so far of this process and its descendants, ended ones that were waited for included."""
    return sum(_cpu_s(pid) for pid in tree_pids())


@dataclass(frozen=True, slots=True)
class CpuClock:
    """CPU seconds so far: of all CPUs, of the busy part of that time, and of this process tree."""

    total_s: float
    busy_s: float
    own_s: float
    steal_s: float = 0.0
    """Time that the hypervisor gave to other virtual machines."""

    @classmethod
    def read(cls, pids: list[int] | None = None, cpus: Collection[int] | None = None) -> CpuClock:
        """Read the clock now. A worker that ends between two readings is still counted, through its parent.

        Args:
            pids: the process tree, if already known.
            cpus: count only these CPUs, on which the whole tree runs; None counts all CPUs of the machine.
        """
        own = sum(_cpu_s(pid) for pid in (tree_pids() if pids is None else pids))
        user, nice, system, idle, iowait, irq, softirq, steal = _machine_s(cpus)
        busy = user + nice + system + irq + softirq
        return cls(total_s=busy + idle + iowait + steal, busy_s=busy, own_s=own, steal_s=steal)

    def foreign_fraction_since(self, earlier: CpuClock) -> float:
        """Return the share of all CPU time since `earlier` that other processes took (0..1)."""
        total = self.total_s - earlier.total_s
        foreign = (self.busy_s - earlier.busy_s) - (self.own_s - earlier.own_s)
        return min(max(foreign / total, 0.0), 1.0) if total > 0 else 0.0

    def steal_fraction_since(self, earlier: CpuClock) -> float:
        """Return the share of all CPU time since `earlier` that the hypervisor took away (0..1)."""
        total = self.total_s - earlier.total_s
        return min(max((self.steal_s - earlier.steal_s) / total, 0.0), 1.0) if total > 0 else 0.0

    def own_fraction_since(self, earlier: CpuClock, wall_s: float, num_cpus: int | None = None) -> float:
        """Return this tree's share of the CPU time since `earlier` that its CPUs could have provided (0..1).

        Args:
            earlier: an earlier reading of this process.
            wall_s: seconds between the two readings.
            num_cpus: CPUs that the tree may use; None takes its affinity, which does not reflect a container's quota.
        """
        most_s = wall_s * (num_cpus or len(os.sched_getaffinity(0)))
        return min(max((self.own_s - earlier.own_s) / most_s, 0.0), 1.0)


def _machine_s(cpus: Collection[int] | None) -> list[float]:
    """Return the CPU seconds of the machine so far: user, nice, system, idle, iowait, irq, softirq, steal (/proc/stat).

    psutil lists single CPUs by position, which differs from their number if some CPUs are offline.
    """
    names = {b"cpu"} if cpus is None else {f"cpu{cpu}".encode() for cpu in cpus}
    lines = [line.split() for line in Path("/proc/stat").read_bytes().splitlines() if line.startswith(b"cpu")]
    counted = [[int(ticks) for ticks in line[1:9]] for line in lines if line[0] in names]
    return [sum(column) / _TICKS_PER_S for column in zip(*counted, strict=True)]


def _cpu_s(pid: int) -> float:
    """Return user and system time of a process and its ended children; 0 if the process is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS_PER_S  # utime stime cutime cstime: fields 14 to 17 (the name, field 2, is cut off)
