"""Counts what trials leave behind: processes, files in /dev/shm and in temporary folders."""

import os
import time
from pathlib import Path

TAG = "FEEDRATE_TEST_TAG"
"""Environment variable that tells the processes of one test from those of other searches on this machine."""


def tagged(tag):
    """pids of all processes that inherited this tag, except this one."""
    wanted, found = f"{TAG}={tag}".encode(), set()
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                found.add(int(entry))
        except OSError:
            continue
    return found - {os.getpid()}


def files(*folders):
    """Files that torch and multiprocessing make in shared memory, and whatever is in these folders."""
    names = {path for pattern in ("torch_*", "sem.*", "pym-*") for path in Path("/dev/shm").glob(pattern)}
    return names.union(*(folder.iterdir() for folder in folders))


def eventually(condition, within_s=10.0):
    """Wait until `condition()` is true, and return its last value."""
    end = time.monotonic() + within_s
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return value
