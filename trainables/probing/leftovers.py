"""`Leftovers`: the threads and open files that a piece of the user's code left behind, read from /proc.

Threads do not survive a fork, and all processes that share an open file share its position. So if making a dataset leaves
either behind, a process that is forked afterwards differs from the user's own program.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HARMLESS_THREADS = ("tqdm",)
"""First part of the module of a thread's class. tqdm's monitor thread only redraws progress bars."""
_FEEDER = "QueueFeederThread"
"""Name of the thread that sends a queue's items, such as indices for workers that the loader started early; no dataset needs it."""
_NOT_DATA = ("/dev/", "/proc/", "/sys/", "/memfd:")


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The threads and open files of this process at one moment."""

    threads: frozenset[int]
    """Python's identifiers of the threads that Python knows."""
    num_tasks: int
    """Number of all threads, as the kernel counts them."""
    files: Mapping[int, str]
    """Descriptor -> what it refers to; a path for a file."""

    @classmethod
    def now(cls) -> Snapshot:
        """Take a snapshot."""
        files = {}
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # raised for the descriptor of the listing itself
                files[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        threads = frozenset(thread.ident or 0 for thread in threading.enumerate())
        return cls(threads=threads, num_tasks=len(os.listdir("/proc/self/task")), files=files)


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftovers:
    """The threads and open files that were left behind; none by default."""

    threads: tuple[str, ...] = ()
    """Names of the threads that Python knows."""
    num_other_threads: int = 0
    """Number of threads that a library started without Python, and of threads that feed a queue."""
    shared: tuple[str, ...] = ()
    """Open files, by path, and network connections, whose position forked processes would share."""
    others: tuple[str, ...] = ()
    """Other open file descriptors, such as pipes and shared memory."""

    @classmethod
    def since(cls, before: Snapshot) -> Leftovers:
        """Return what is new since `before`, without files that are only mapped into memory for reading."""
        now = Snapshot.now()
        new = [thread for thread in threading.enumerate() if thread.ident not in before.threads]
        named = [thread.name for thread in new if type(thread).__module__.partition(".")[0] not in _HARMLESS_THREADS]
        threads = [name for name in named if name != _FEEDER]
        shared, others = [], []
        mapped = _mapped()
        for descriptor, target in sorted(now.files.items()):
            if before.files.get(descriptor) == target:
                continue
            if target in mapped:  # read through memory, so there is no shared position
                others += [target] if mapped[target] else []
            elif (connection := _connection(descriptor, target)) is not None:
                shared.append(connection)
            elif not target.startswith("/") or target.startswith(_NOT_DATA):
                others.append(target)
            elif _is_read(descriptor):  # a file that is only written, such as a log, does not change the delivered samples
                shared.append(target)
        return cls(
            threads=tuple(threads),
            num_other_threads=max(now.num_tasks - before.num_tasks - len(new), 0) + len(named) - len(threads),
            shared=tuple(dict.fromkeys(shared)),
            others=tuple(dict.fromkeys(others)),
        )

    def __add__(self, other: Leftovers) -> Leftovers:
        return Leftovers(
            threads=self.threads + other.threads,
            num_other_threads=self.num_other_threads + other.num_other_threads,
            shared=tuple(dict.fromkeys(self.shared + other.shared)),
            others=tuple(dict.fromkeys(self.others + other.others)),
        )

    @property
    def is_nothing(self) -> bool:
        """Whether nothing was left behind, so that a forked process behaves like one that ran the code itself."""
        return not (self.threads or self.num_other_threads or self.shared or self.others)


def _mapped() -> dict[str, bool]:
    """Return the files that are mapped into memory -> whether they can be changed through the mapping."""
    mapped: dict[str, bool] = {}
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            changes = fields[1][1] == "w" and fields[1][3] == "s"
            mapped[fields[5]] = mapped.get(fields[5], False) or changes
    return mapped


def _connection(descriptor: int, target: str) -> str | None:
    """Describe a network connection; return None for anything else, such as a pair of sockets inside one process."""
    if not target.startswith("socket:"):
        return None
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            host, port = connection.getpeername()[:2]
            return f"a connection to {host}:{port}"
    return None


def _is_read(descriptor: int) -> bool:
    """Whether a descriptor was opened for reading."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
            if line.startswith("flags:"):
                return int(line.split()[1], 8) & os.O_ACCMODE != os.O_WRONLY
    return False
