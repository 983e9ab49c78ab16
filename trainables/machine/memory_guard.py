"""The memory guard: it ends a trial that uses up the memory, before the kernel or Ray's memory monitor kills something.

The kernel could kill any process; Ray's monitor would kill the supervisor and thereby the whole search. The monitor acts
when 95 % of the memory is in use, this guard at 94 %.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from feedrate.trainables.machine import cgroup

PERIOD_S = 0.2
MIN_AVAILABLE_FRACTION = 0.06
MIN_AVAILABLE_BYTES = 512 * 1024**2
LIMIT_VARIABLE = "FEEDRATE_MIN_AVAILABLE_BYTES"
"""Environment variable for the memory that a trial must leave available; 0 switches the guard off."""
TRIAL_VARIABLE = "FEEDRATE_MAX_TRIAL_BYTES"
"""Environment variable for the most memory that one trial may take, however much is available."""
_UNLIMITED = 1 << 60


class MemoryGuard:
    """Watches the memory of one trial.

    Args:
        min_available_bytes: memory to leave available on this machine and in this container; None is 6 % of it, but at least
            512 MiB and at most a quarter.
        max_trial_bytes: memory that the trial may take; None is no limit.
    """

    def __init__(self, min_available_bytes: int | None = None, max_trial_bytes: int | None = None) -> None:
        self.total_bytes = total_bytes()
        self.way_out = "use fewer workers, a smaller prefetch_factor or a smaller batch_size"
        if min_available_bytes is None:
            wanted = max(int(self.total_bytes * MIN_AVAILABLE_FRACTION), MIN_AVAILABLE_BYTES)
            min_available_bytes = min(wanted, self.total_bytes // 4)
        self.min_available_bytes, self.max_trial_bytes = min_available_bytes, max_trial_bytes
        self._folders = [folder for folder in cgroup.folders("memory") if _limit(folder) is not None]
        self.at_first_bytes = available_bytes(folders=self._folders)
        self._next_s = 0.0

    @classmethod
    def from_environment(cls) -> MemoryGuard:
        """Make a guard with the limits in the environment variables.

        Raises:
            ValueError: one of them is not a number of bytes.
        """
        limits = []
        for name in (LIMIT_VARIABLE, TRIAL_VARIABLE):
            text = os.environ.get(name)
            if text is not None and not text.isdecimal():
                raise ValueError(f"{name} must be a number of bytes, not {text!r}")
            limits.append(int(text) if text is not None else None)
        return cls(*limits)

    def crossed(self, pids: Iterable[int]) -> str | None:
        """Return the message with which to end the trial; None as long as there is no reason to end it.

        A trial is ended only for memory that it took itself; if other processes took it, ending the trial would not help.

        Args:
            pids: the trial's processes; iterated over only if memory is short, or if the trial has a limit of its own. Reading
                the trial's memory takes milliseconds, reading the available memory a tenth of one.
        """
        available = available_bytes(folders=self._folders)
        short = available is not None and available < self.min_available_bytes
        if (not short and self.max_trial_bytes is None) or time.monotonic() < self._next_s:
            return None
        begin = time.monotonic()
        own = sum(filter(None, map(pss_bytes, pids)))
        self._next_s = time.monotonic() + 20 * (time.monotonic() - begin)
        way_out = self.way_out
        if self.max_trial_bytes is not None and own > self.max_trial_bytes:
            return f"the trial took {_gb(own)} of memory, more than the {_gb(self.max_trial_bytes)} of {TRIAL_VARIABLE}: {way_out}"
        if not short or available is None or self.at_first_bytes is None:
            return None
        if own < (self.at_first_bytes - available) / 2:
            return None
        return (
            f"the trial took {_gb(own)} of memory and left {_gb(available)} of {_gb(self.total_bytes)} available; feedrate ended it "
            f"before the kernel would kill a process ({LIMIT_VARIABLE} is {_gb(self.min_available_bytes)}): {way_out}"
        )


def total_bytes() -> int:
    """Return the size of this machine's memory, or the container's limit if that is lower."""
    limits = [limit for folder in cgroup.folders("memory") if (limit := _limit(folder)) is not None]
    return min([_meminfo("MemTotal") or _UNLIMITED, *limits])


def available_bytes(meminfo: Path = Path("/proc/meminfo"), folders: Iterable[Path] | None = None) -> int | None:
    """Return the memory available without swapping, on this machine and in every container around this process.

    Returns None if the kernel does not report it.

    Args:
        meminfo: the machine's /proc/meminfo.
        folders: control groups; None is this process's own group and those around it.
    """
    found = [_meminfo("MemAvailable", meminfo)]
    for folder in cgroup.folders("memory") if folders is None else folders:
        limit, used = _limit(folder), _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            counts = cgroup.numbers(folder / "memory.stat")  # page cache counts as used memory, but the kernel can reclaim it
            cache = counts.get("total_inactive_file", counts.get("inactive_file", 0))
            found.append(max(limit - max(used - cache, 0), 0))
    return min((each for each in found if each is not None), default=None)


def pss_bytes(pid: int) -> int | None:
    """Return the proportional set size of one process; None if it has ended or belongs to another user."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _limit(folder: Path) -> int | None:
    limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
    return limit if limit is not None and limit < _UNLIMITED else None


def _number(*paths: Path) -> int | None:
    for path in paths:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() else None  # in v2, "max" means no limit
    return None


def _meminfo(name: str, path: Path = Path("/proc/meminfo")) -> int | None:
    try:
        _, found, rest = path.read_text().partition(f"{name}:")
    except OSError:
        return None
    return int(rest.split(maxsplit=1)[0]) * 1024 if found else None


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
