"""Counts what trials leave behind: processes, files in /dev/shm and in temporary folders."""

import contextlib
import os
import time
import uuid
from pathlib import Path

import pytest

import feedrate.trainables
from feedrate.trainables.machine.host_lock import HostLock

OURS = f"{Path(feedrate.trainables.__file__).parent}/"
"""Beginning of the paths of the files that no traceback of a user shows."""
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


def remove_locks():
    """Delete the files behind this host's locks."""
    lock = HostLock().path
    for path in lock.parent.glob(f"{lock.stem}.*"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def leaves_nothing(tmp_path_factory, left=files):
    """A tag for what a module starts, and folders and a host of its own; at the end no process or file of it is left.

    `left` gives the files that count, in shared memory and in the temporary folder.
    """
    name, folder = uuid.uuid4().hex, tmp_path_factory.mktemp("t")
    before = files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEEDRATE_HOST_ID", f"test-{name}")
        patch.setenv("TMPDIR", str(folder))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))  # importing torch makes it
        yield name
        assert eventually(lambda: not tagged(name)), tagged(name)
        assert eventually(lambda: not left(folder) - before), left(folder) - before
        remove_locks()
