"""What happened on the machine while a trial was timed: CPU time taken away, quota, pressure, reads from storage.

Each fact is a column of analysis/schema.py; it is None if the kernel does not report it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feedrate.trainables.machine import cgroup, host
from feedrate.trainables.machine.gpu_load import gpu_busy_fraction
from feedrate.trainables.machine.process import CpuClock, trees

PRESSURE = Path("/proc/pressure")
BUSY_FRACTION = 0.1
"""Share of this host's CPUs, or of a GPU's time, below which the load of other processes counts as quiet."""
LOOK_S = 0.5
LOOK_AGAIN_S = 3.0
WARM_BYTES = 2**20
"""The page cache counts as warm if reads from storage are at most this, or at most 1 % of all bytes read."""


@dataclass(frozen=True, slots=True)
class MachineClock:
    """Readings of counters that only grow; the facts are differences between two readings."""

    cpu: CpuClock
    throttled_periods: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Control group -> number of CPU quota periods so far, and of those in which the quota ran out."""
    pressure_us: dict[str, int] = field(default_factory=dict)
    """cpu, io, memory -> microseconds in which some process on this machine waited for it."""
    storage_read_bytes: int | None = None
    read_call_bytes: int | None = None

    @classmethod
    def read(cls, cpus: Collection[int] | None = None, roots: Collection[int] = ()) -> MachineClock:
        """Read the counters, in about 0.1 ms plus as much per process of the tree.

        Args:
            cpus: count only these CPUs; None counts all CPUs of the machine.
            roots: processes whose trees count as this trial's, besides this process's own.
        """
        pids = trees(roots)
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
        """Return the columns of a trial record for the time since `earlier`.

        Args:
            earlier: an earlier reading of this process.
            wall_s: seconds between the two readings.
            dropped: see `cache_state`.
            num_cpus: CPUs that trainer and workers may use together; None uses this process's own.
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
    """Wait at most `most_s` until other processes leave this host's CPUs and the trial's GPUs alone. The caller holds the host's lock.

    Args:
        most_s: 0 returns at once, without a measurement.
        on_wait: called once with the reason, if there is a wait.
        cpus: measure only these CPUs; None measures all CPUs of the host.
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
    """Return the state of the page cache during the windows: cold, warm or mixed; None if it is not known.

    Args:
        storage_read_bytes: bytes read from storage in the windows; None if the kernel does not report it.
        read_call_bytes: bytes that read() calls returned in the windows, from storage or not.
        dropped: feedrate dropped the files from the cache throughout, and checked that the kernel did so. Even then it is cold only
            if at least half of these bytes came from storage, because a C library may read files that were not dropped.
    """
    if storage_read_bytes is None:
        return None
    if storage_read_bytes <= max(WARM_BYTES, 0.01 * (read_call_bytes or 0)):
        return "warm"
    return "cold" if dropped and storage_read_bytes >= 0.5 * (read_call_bytes or 0) else "mixed"


def _grown(earlier: int | None, now: int | None) -> int | None:
    """Return the growth of a counter, never below 0: if a process ends and nobody waits for it, its count disappears."""
    return None if earlier is None or now is None else max(now - earlier, 0)


def _throttled_fraction(earlier: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> float | None:
    """Return the share of quota periods in which the quota ran out, for the group with the largest share; 0 without a quota."""
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
    """Read the totals of the lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`; older kernels do not have them."""
    found = {}
    for name in ("cpu", "io", "memory"):
        try:
            some = (folder / name).read_text().splitlines()[0]
            found[name] = int(some.rpartition("total=")[2])
        except (OSError, ValueError, IndexError):
            continue
    return found


def _read_bytes(pid: int) -> tuple[int, int] | None:
    """Return the bytes that a process and its ended children got from storage and from read() calls; None if it cannot be read."""
    try:
        with open(f"/proc/{pid}/io", "rb") as stream:
            fields = dict(line.split(b": ") for line in stream.read().splitlines())
    except OSError:  # the process is gone, or belongs to another user
        return None
    return int(fields[b"read_bytes"]), int(fields[b"rchar"])
