"""What the process tree of a trial uses: memory, open files, /dev/shm and CPU time, read from /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def tree_pids(root: int | None = None) -> list[int]:
    """A process and all its descendants; this process where none is named.

    The kernel's own list of children takes 0.05 ms a process, where psutil reads every process of the machine.
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
    """Proportional set size: shared pages are divided by their users, so that sums are true."""
    uss_bytes: int
    """Pages that nobody else uses."""
    max_open_files: int = 0
    """Open file descriptors of the process of the tree that has the most."""


def tree_memory() -> Memory | None:
    """Memory of this process and all its descendants; None where the kernel does not tell.

    The kernel walks every page table: a few milliseconds for each GB. Not for the middle of a window.
    """
    pss = uss = most = 0
    for pid in tree_pids():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)
            full = process.memory_full_info()
            pss, uss = pss + full.pss, uss + full.uss
            most = max(most, process.num_fds())
    return Memory(pss_bytes=pss, uss_bytes=uss, max_open_files=most) if pss else None


def growth_bytes_per_batch(first: Memory | None, last: Memory | None, num_batches: int) -> float | None:
    """Memory that each batch adds for good: forked workers copy the pages of a dataset bit by bit, as they touch them.

    Args:
        first: when the windows began, every worker having delivered.
        last: when they ended.
        num_batches: consumed between the two.

    Returns:
        USS per batch, negative where it shrank; None where one of them is not known.
    """
    if first is None or last is None or num_batches < 1:
        return None
    return (last.uss_bytes - first.uss_bytes) / num_batches


def shm_used_bytes() -> int | None:
    """Bytes in use in /dev/shm, by everybody; None where there is none."""
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return None
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


@dataclass(frozen=True, slots=True)
class CpuClock:
    """CPU seconds so far: of all CPUs, of their busy part, and of this process tree."""

    total_s: float
    busy_s: float
    own_s: float
    steal_s: float = 0.0
    """Time that the hypervisor gave to other virtual machines."""

    @classmethod
    def read(cls, pids: list[int] | None = None, cpus: Collection[int] | None = None) -> CpuClock:
        """The clock now. Workers that end between two readings are counted through their parent.

        Args:
            pids: the process tree, where it is known already.
            cpus: count these alone, which the tree does not leave; None counts all of the machine.
        """
        own = sum(_cpu_s(pid) for pid in (tree_pids() if pids is None else pids))
        user, nice, system, idle, iowait, irq, softirq, steal = _machine_s(cpus)
        busy = user + nice + system + irq + softirq
        return cls(total_s=busy + idle + iowait + steal, busy_s=busy, own_s=own, steal_s=steal)

    def foreign_fraction_since(self, earlier: CpuClock) -> float:
        """Share of all CPU time since `earlier` that other processes took (0..1)."""
        total = self.total_s - earlier.total_s
        foreign = (self.busy_s - earlier.busy_s) - (self.own_s - earlier.own_s)
        return min(max(foreign / total, 0.0), 1.0) if total > 0 else 0.0

    def steal_fraction_since(self, earlier: CpuClock) -> float:
        """Share of all CPU time since `earlier` that the hypervisor took away (0..1)."""
        total = self.total_s - earlier.total_s
        return min(max((self.steal_s - earlier.steal_s) / total, 0.0), 1.0) if total > 0 else 0.0

    def own_fraction_since(self, earlier: CpuClock, wall_s: float, num_cpus: int | None = None) -> float:
        """CPU time of this tree since `earlier`, of what the CPUs it may use could have given (0..1).

        Args:
            earlier: an earlier reading of this process.
            wall_s: time between the two.
            num_cpus: CPUs it may use; None is its affinity, which does not see a container's quota.
        """
        most_s = wall_s * (num_cpus or len(os.sched_getaffinity(0)))
        return min(max((self.own_s - earlier.own_s) / most_s, 0.0), 1.0)


def _machine_s(cpus: Collection[int] | None) -> list[float]:
    """Seconds of the machine's CPUs so far: user, nice, system, idle, iowait, irq, softirq, steal (/proc/stat).

    psutil gives those of single CPUs by position, which is not their number where some are offline.
    """
    names = {b"cpu"} if cpus is None else {f"cpu{cpu}".encode() for cpu in cpus}
    lines = [line.split() for line in Path("/proc/stat").read_bytes().splitlines() if line.startswith(b"cpu")]
    counted = [[int(ticks) for ticks in line[1:9]] for line in lines if line[0] in names]
    return [sum(column) / _TICKS_PER_S for column in zip(*counted, strict=True)]


def _cpu_s(pid: int) -> float:
    """User and system time of a process and of its children that have ended; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS_PER_S  # utime stime cutime cstime: 14 to 17, the name being the second
