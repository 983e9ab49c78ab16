"""Find all processes of a trial by a marker in their environment, end them, and remove the files they leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

MARKER = "FEEDRATE_TEMPLATE"
"""Environment variable that every process of a trial inherits from its template, by which escaped processes are found."""
HELPERS = (b"multiprocessing.resource_tracker", b"torch_shm_manager")
"""Words in the command lines of processes that clean up after killed ones and then end by themselves."""


def kill_group(pid: int) -> None:
    """Send SIGKILL to a process group; ignore a group that is already gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def marked(marker: str) -> dict[int, bool]:
    """Return every process whose environment contains this marker, and whether it is one of `HELPERS`.

    This also finds processes that left the trial's process group: the template was started with the marker in its
    environment, so all its descendants inherit it.
    """
    wanted = f"{MARKER}={marker}".encode()
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
                found[int(entry)] = any(word in command for word in HELPERS)
        except OSError:
            continue
    return found


def sweep(marker: str, *, spare: set[int], group: int | None = None, helpers_s: float = 4.0) -> None:
    """Send SIGKILL to a process group and to every process with this marker, and wait until they are gone (5 s at most).

    `HELPERS`, also those in the group, get `helpers_s` seconds to end by themselves; 0 does not wait for them at all. If a loader worker is killed while
    it makes a batch, the batch's file stays in /dev/shm; it is found by the worker's pid and removed.
    """
    killed: set[int] = set()
    has_helper = False
    if group is not None:
        members = marked(marker)
        killed = set(members) - spare
        has_helper = any(_group_of(pid) == group for pid, is_helper in members.items() if is_helper)
        if not has_helper:
            kill_group(group)
    begin = time.monotonic()
    while time.monotonic() < begin + 5:
        found = {pid: helper for pid, helper in marked(marker).items() if pid not in spare}
        if not helpers_s:
            found = {pid: helper for pid, helper in found.items() if not helper}
        if not found:
            break
        for pid, helper in found.items():
            if not helper or time.monotonic() > begin + helpers_s:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        killed |= found.keys()
        time.sleep(0.01)
    if group is not None and has_helper:
        kill_group(group)
    remove_batches(killed)


def _group_of(pid: int) -> int | None:
    """Return the process group of a process; None if it has ended."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def remove_batches(pids: Iterable[int]) -> None:
    """Remove the shared memory files that torch made for these processes, which have ended."""
    for pid in pids:
        for path in Path("/dev/shm").glob(f"torch_{pid}_*"):
            with contextlib.suppress(OSError):
                path.unlink()
