"""Counts what trials leave behind: processes, files in /dev/shm, folders of multiprocessing."""

import os
import tempfile
import time
from pathlib import Path

from feedrate.trainables.template import MARKER


def marked(since=frozenset()):
    """pids of all processes with a template's marker in their environment, without those in `since`."""
    found = set()
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and f"\0{MARKER}=".encode() in b"\0" + Path(f"/proc/{entry}/environ").read_bytes():
                found.add(int(entry))
        except OSError:
            continue
    return found - since


def children_of(marker):
    """pids of all processes with exactly this marker."""
    found = set()
    for pid in marked():
        try:
            if f"{MARKER}={marker}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.add(pid)
        except OSError:
            continue
    return found


def files():
    """Files that torch and multiprocessing make in shared memory, and their folders of sockets."""
    names = {path for pattern in ("torch_*", "sem.*", "pym-*") for path in Path("/dev/shm").glob(pattern)}
    return names | set(Path(tempfile.gettempdir()).glob("pymp-*"))


def eventually(condition, within_s=10.0):
    """Wait until `condition()` is true, and return its last value."""
    end = time.monotonic() + within_s
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return value
