"""`Leftovers`: the threads and open files that a piece of the user's code left behind, read from /proc.

Threads do not survive a fork, and an open file has one position for all processes that share it: where making a dataset
leaves either, a process forked afterwards is not like the user's own program.
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
"""First part of the module of a thread's class: tqdm's monitor only redraws progress bars."""
_FEEDER = "QueueFeederThread"
"""Sends what this process puts into a queue, such as the indices for workers that the loader started when it was made: no dataset needs it."""
_NOT_DATA = ("/dev/", "/proc/", "/sys/", "/memfd:")


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The threads and open files of this process at one moment."""

    threads: frozenset[int]
    """Python's identifiers of Python's threads."""
    num_tasks: int
    """All threads, as the kernel counts them."""
    files: Mapping[int, str]
    """Descriptor -> what it is, a path for a file."""

    @classmethod
    def now(cls) -> Snapshot:
        """Read them."""
        files = {}
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # that of the listing itself
                files[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        threads = frozenset(thread.ident or 0 for thread in threading.enumerate())
        return cls(threads=threads, num_tasks=len(os.listdir("/proc/self/task")), files=files)


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftovers:
    """What was left behind; nothing by default."""

    threads: tuple[str, ...] = ()
    """Names of Python's threads."""
    num_other_threads: int = 0
    """Threads that a library started without Python, and those that feed a queue."""
    shared: tuple[str, ...] = ()
    """Open files, by their paths, and network connections: forked processes read them through one position."""
    others: tuple[str, ...] = ()
    """Other open descriptors, such as pipes and shared memory."""

    @classmethod
    def since(cls, before: Snapshot) -> Leftovers:
        """What there is now and was not there before; files that are only mapped into memory for reading are left out."""
        now = Snapshot.now()
        new = [thread for thread in threading.enumerate() if thread.ident not in before.threads]
        named = [thread.name for thread in new if type(thread).__module__.partition(".")[0] not in _HARMLESS_THREADS]
        threads = [name for name in named if name != _FEEDER]
        shared, others = [], []
        mapped = _mapped()
        for descriptor, target in sorted(now.files.items()):
            if before.files.get(descriptor) == target:
                continue
            if target in mapped:  # read through memory, which has no position
                others += [target] if mapped[target] else []
            elif (connection := _connection(descriptor, target)) is not None:
                shared.append(connection)
            elif not target.startswith("/") or target.startswith(_NOT_DATA):
                others.append(target)
            elif _is_read(descriptor):  # what is only written, such as a log, changes nothing that is delivered
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
        """Whether a forked process is like one in which the code ran."""
        return not (self.threads or self.num_other_threads or self.shared or self.others)


def _mapped() -> dict[str, bool]:
    """Files that are mapped into memory -> whether they can be changed through it."""
    mapped: dict[str, bool] = {}
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            changes = fields[1][1] == "w" and fields[1][3] == "s"
            mapped[fields[5]] = mapped.get(fields[5], False) or changes
    return mapped


def _connection(descriptor: int, target: str) -> str | None:
    """A network connection in words; None for anything else, a pair of sockets inside one process among it."""
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
