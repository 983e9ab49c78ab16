"""What the process tree of a trial uses: memory, /dev/shm and CPU time, read from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a process tree."""

    pss_bytes: int
    """Proportional set size: shared pages are divided by their users, so that sums are true."""
    uss_bytes: int
    """Pages that nobody else uses."""


def tree_memory() -> Memory | None:
    """Memory of this process and all its descendants; None where the kernel does not tell."""
    pss = uss = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            full = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        pss, uss = pss + full.pss, uss + full.uss
    return Memory(pss_bytes=pss, uss_bytes=uss) if pss else None


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

    @classmethod
    def read(cls) -> CpuClock:
        """The clock now. Workers that end between two readings are counted through their parent."""
        times = psutil.cpu_times()
        busy = times.user + times.nice + times.system + times.irq + times.softirq
        own = 0.0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                used = process.cpu_times()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            own += used.user + used.system + used.children_user + used.children_system
        return cls(total_s=busy + times.idle + times.iowait + times.steal, busy_s=busy, own_s=own)

    def foreign_fraction_since(self, earlier: CpuClock) -> float:
        """Share of all CPU time since `earlier` that other processes took (0..1)."""
        total = self.total_s - earlier.total_s
        foreign = (self.busy_s - earlier.busy_s) - (self.own_s - earlier.own_s)
        return min(max(foreign / total, 0.0), 1.0) if total > 0 else 0.0

    def own_fraction_since(self, earlier: CpuClock, wall_s: float) -> float:
        """CPU time of this tree since `earlier`, of what the CPUs it may use could have given (0..1)."""
        return min(max((self.own_s - earlier.own_s) / (wall_s * len(os.sched_getaffinity(0))), 0.0), 1.0)
