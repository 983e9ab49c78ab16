"""What the machine did to a trial while it was timed: CPU taken away, quota, pressure, reads from storage.

Each fact is a column of analysis/schema.py, None where the kernel does not tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feedrate.trainables.machine import cgroup, host
from feedrate.trainables.machine.gpu_load import gpu_busy_fraction
from feedrate.trainables.machine.process import CpuClock, tree_pids

PRESSURE = Path("/proc/pressure")
BUSY_FRACTION = 0.1
"""Of this host's CPUs, or of a GPU's time: what other processes may use on a host that is called quiet."""
LOOK_S = 0.5
LOOK_AGAIN_S = 3.0
WARM_BYTES = 2**20
"""Reads from storage below this, or below 1 % of what was read altogether, leave the page cache's state warm."""


@dataclass(frozen=True, slots=True)
class MachineClock:
    """Counters that only grow; the facts are differences of two readings."""

    cpu: CpuClock
    throttled_periods: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Control group -> periods of its CPU quota so far, and those in which it ran out."""
    pressure_us: dict[str, int] = field(default_factory=dict)
    """cpu, io, memory -> microseconds in which somebody on this machine waited for it."""
    storage_read_bytes: int | None = None
    read_call_bytes: int | None = None

    @classmethod
    def read(cls, cpus: Collection[int] | None = None) -> MachineClock:
        """The counters now: about 0.1 ms, and as much for each process of the tree; of these CPUs alone, where they are given."""
        pids = tree_pids()
        counted = [count for count in map(_read_bytes, pids) if count is not None]
        return cls(
            cpu=CpuClock.read(pids, cpus),
            throttled_periods=_throttled_periods(),
            pressure_us=_pressure_us(),
            storage_read_bytes=sum(storage for storage, _ in counted) if counted else None,
            read_call_bytes=sum(calls for _, calls in counted) if counted else None,
        )

    def columns_since(
        self, earlier: MachineClock, wall_s: float, *, dropped: bool = False, num_cpus: int | None = None
    ) -> dict[str, Any]:
        """Columns of a trial record for the time since `earlier`, which took `wall_s`.

        Args:
            earlier: an earlier reading of this process.
            wall_s: time between the two.
            dropped: see `cache_state`.
            num_cpus: CPUs of trainer and workers together; None asks for this process's.
        """
        columns: dict[str, Any] = {
            "foreign_cpu_fraction": self.cpu.foreign_fraction_since(earlier.cpu),
            "own_cpu_fraction": self.cpu.own_fraction_since(earlier.cpu, wall_s, num_cpus or host.cpu_budget()[0]),
            "steal_fraction": self.cpu.steal_fraction_since(earlier.cpu),
            "throttled_fraction": _throttled_fraction(earlier.throttled_periods, self.throttled_periods),
            "storage_read_bytes": _grown(earlier.storage_read_bytes, self.storage_read_bytes),
            "read_call_bytes": _grown(earlier.read_call_bytes, self.read_call_bytes),
        }
        for name in ("cpu", "io", "memory"):
            waited_us = _grown(earlier.pressure_us.get(name), self.pressure_us.get(name))
            columns[f"psi_{name}_fraction"] = None if waited_us is None else min(waited_us / 1e6 / wall_s, 1.0)
        columns["cache_state"] = cache_state(columns["storage_read_bytes"], columns["read_call_bytes"], dropped=dropped)
        return columns


def wait_until_quiet(most_s: float, on_wait: Callable[[str], None], cpus: Collection[int] | None = None) -> None:
    """Wait until other processes leave this host's CPUs and the trial's GPUs alone, at most so long. The caller holds the host's lock.

    Args:
        most_s: 0 does not look at all.
        on_wait: told once why, if there is a wait.
        cpus: look at these alone; None looks at all of the host.
    """
    deadline, told = time.monotonic() + most_s, False
    while time.monotonic() < deadline:
        before = CpuClock.read(cpus=cpus)
        time.sleep(min(LOOK_S, most_s))
        foreign = {"this host's CPUs": CpuClock.read(cpus=cpus).foreign_fraction_since(before), "the trial's GPU": gpu_busy_fraction() or 0.0}
        used = [f"{fraction:.0%} of {what}" for what, fraction in foreign.items() if fraction >= BUSY_FRACTION]
        if not used:
            return
        if not told:
            told = True
            on_wait(f"other processes use {' and '.join(used)} (--wait sets how long to wait)")
        time.sleep(max(min(LOOK_AGAIN_S, deadline - time.monotonic()), 0))


def cache_state(storage_read_bytes: int | None, read_call_bytes: int | None, *, dropped: bool = False) -> str | None:
    """What the page cache was during the windows: cold, warm, mixed, or None where it is not known.

    Args:
        storage_read_bytes: came from storage in the windows; None where the kernel does not tell.
        read_call_bytes: came from read() calls in the windows, from storage or not.
        dropped: the cache was dropped on purpose all along, and the drop was seen to work. It is cold only where
            at least half of what was read came from storage then: a C library may read files that nobody dropped.
    """
    if storage_read_bytes is None:
        return None
    if storage_read_bytes <= max(WARM_BYTES, 0.01 * (read_call_bytes or 0)):
        return "warm"
    return "cold" if dropped and storage_read_bytes >= 0.5 * (read_call_bytes or 0) else "mixed"


def _grown(earlier: int | None, now: int | None) -> int | None:
    """Growth of a counter; a process that ended without being waited for takes its count along, so never below 0."""
    return None if earlier is None or now is None else max(now - earlier, 0)


def _throttled_fraction(earlier: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> float | None:
    """Share of the quota's periods in which a group ran out, of the group where it is largest; 0 without a quota."""
    grown = [
        (now[group][0] - earlier[group][0], now[group][1] - earlier[group][1]) for group in now if group in earlier
    ]
    return max((min(out / periods, 1.0) if periods > 0 else 0.0 for periods, out in grown), default=None)


def _throttled_periods(root: Path = cgroup.ROOT, membership: Path = cgroup.MEMBERSHIP) -> dict[str, tuple[int, int]]:
    found = {}
    for folder in cgroup.folders("cpu", root, membership):
        stat = cgroup.numbers(folder / "cpu.stat")
        if "nr_periods" in stat and "nr_throttled" in stat:
            found[str(folder)] = stat["nr_periods"], stat["nr_throttled"]
    return found


def _pressure_us(folder: Path = PRESSURE) -> dict[str, int]:
    """Totals of the lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`; not there in older kernels."""
    found = {}
    for name in ("cpu", "io", "memory"):
        try:
            some = (folder / name).read_text().splitlines()[0]
            found[name] = int(some.rpartition("total=")[2])
        except (OSError, ValueError, IndexError):
            continue
    return found


def _read_bytes(pid: int) -> tuple[int, int] | None:
    """Bytes that a process, and its children that were waited for, got from storage and from read() calls."""
    try:
        with open(f"/proc/{pid}/io", "rb") as stream:
            fields = dict(line.split(b": ") for line in stream.read().splitlines())
    except OSError:  # gone, or another user's
        return None
    return int(fields[b"read_bytes"]), int(fields[b"rchar"])
