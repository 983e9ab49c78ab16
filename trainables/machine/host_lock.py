"""The lock that lets only one trial at a time measure on a host, across searches and users, and its holder.

The lock's files are in /tmp, where every user can open and lock them, with feedrate or without. So a trial waits for another
user's lock for at most OTHERS_WAIT_S, then measures without it; for the user's own trials it waits as long as they take.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pwd
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from feedrate.trainables.machine.host import host_id

LOCK_FOLDER = Path("/tmp")
LOCKS = Path("/proc/locks")
PATIENCE_S = 1.0
"""A wait up to this long is not reported, because the previous trial's workers may just be ending."""
LOOK_AGAIN_S = 1.0
OTHERS_WAIT_S = 1800.0
"""How long a trial waits for locks of other users, in total: long enough for thirty trials of a minute."""
MOST_BYTES = 4096
MOST_CHARACTERS = 200


class HostLock:
    """A lock that one measuring trial at a time holds on a host, across searches and users; or one trial per GPU.

    Every process that inherited the open file holds an flock. So the lock is free only when the last loader worker of a
    trial is gone, however the trial ended. After a crash the files remain, but they lock nothing.

    Args:
        gpus: the host's GPUs that the trial uses, if it shares the host with trials on other GPUs (--share host). Such trials
            hold the host together, and each holds its GPUs exclusively. If empty, the trial holds the host exclusively.
        command: what the holder runs; shown to those who wait.
        others_wait_s: how long to wait for other users' locks.
    """

    def __init__(self, gpus: Sequence[int] = (), *, command: str = "feedrate", others_wait_s: float = OTHERS_WAIT_S) -> None:
        name = hashlib.sha256(host_id().encode()).hexdigest()[:16]
        self.path = LOCK_FOLDER / f"feedrate-host-{name}.lock"
        # a trial that waits for the host holds the turn; otherwise trials that share the host could keep out one that needs all of it
        self._turn = self.path.with_suffix(".turn.lock")
        self._gpus = [self.path.with_suffix(f".gpu{gpu}.lock") for gpu in sorted(gpus)]
        self._command, self._others_wait_s = command, others_wait_s
        self._descriptors: list[int] = []

    def acquire(self, on_wait: Callable[[str], None]) -> str | None:
        """Take the lock.

        Args:
            on_wait: called once with a sentence if another process holds the lock for a second.

        Returns:
            None if the lock is held; otherwise why the trial measures without it: another user held it for too long, or its
            file cannot be used.
        """
        patience = _Patience(on_wait, self._others_wait_s)
        turn = None
        try:
            turn = _lock(self._turn, fcntl.LOCK_EX, patience)
            _write_holder(turn, self._command)
            self._descriptors.append(_lock(self.path, fcntl.LOCK_SH if self._gpus else fcntl.LOCK_EX, patience))
            _give_back(turn)
            turn = None
            self._descriptors += [_lock(path, fcntl.LOCK_EX, patience) for path in self._gpus]
        except _Unusable as error:
            self.release()
            return str(error)
        finally:
            if turn is not None:
                _give_back(turn)
        for descriptor in self._descriptors[1:] or self._descriptors:  # the locks that only this trial holds
            _write_holder(descriptor, self._command)
        return None

    def release(self) -> None:
        """Release the lock; do nothing if it is not held."""
        while self._descriptors:
            _give_back(self._descriptors.pop())


class _Unusable(Exception):
    """The lock cannot be taken; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A process that holds a lock."""

    pid: int
    uid: int
    user: str
    command: str = ""
    """The command that the holder wrote into the lock's file; empty if another process wrote the file."""
    since_unix_s: float = 0.0
    is_known: bool = True
    """False if only the file names the holder: every user can write to it."""

    def __str__(self) -> str:
        if not self.command:
            return f"process {self.pid} of {self.user}"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_unix_s))
        return f"{self.user}, process {self.pid}, since {since}: {self.command}"


def holder_of(descriptor: int) -> Holder | None:
    """Return the holder of a lock on an open file; None if neither the kernel nor the file names one.

    The kernel names the process that took the lock, unless that process has ended and only a child holds the lock, or it is in
    another PID namespace. The file contains the holder's command.
    """
    written = _written(descriptor)
    status = os.fstat(descriptor)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = [line.split() for line in LOCKS.read_text().splitlines()]
    except OSError:
        lines = []
    for words in lines:
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == place and words[4].isdecimal():
            pid = int(words[4])
            try:
                uid = os.stat(f"/proc/{pid}").st_uid
            except OSError:
                continue
            found = Holder(pid=pid, uid=uid, user=_user(uid))
            is_of_it = written is not None and written.pid == pid
            return replace(found, command=written.command, since_unix_s=written.since_unix_s) if written and is_of_it else found
    return written


def _written(descriptor: int) -> Holder | None:
    """Return the holder that the file names; None if its content makes no sense."""
    try:
        found = json.loads(os.pread(descriptor, MOST_BYTES, 0))
        user, command = ("".join(filter(str.isprintable, str(found[name])))[:MOST_CHARACTERS] for name in ("user", "command"))
        return Holder(pid=int(found["pid"]), uid=-1, user=user, command=command, since_unix_s=float(found["since_unix_s"]), is_known=False)
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _write_holder(descriptor: int, command: str) -> None:
    found = {"pid": os.getpid(), "user": _user(os.getuid()), "command": command[:MOST_CHARACTERS], "since_unix_s": time.time()}
    _write(descriptor, json.dumps(found).encode())


def _give_back(descriptor: int) -> None:
    _write(descriptor, b"")
    os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    """Replace the content of a lock's file, but not if the file is read-only or has another name as well."""
    try:
        if os.fstat(descriptor).st_nlink == 1:  # otherwise it may be somebody's file, linked here by another user
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, data, 0)
    except OSError:
        return


class _Patience:
    """Counts how long other users hold a lock, and reports once that the trial has to wait."""

    def __init__(self, on_wait: Callable[[str], None], others_wait_s: float) -> None:
        self._on_wait, self._others_wait_s = on_wait, others_wait_s
        self._begun_s, self._looked_s = time.monotonic(), 0.0
        self._others_s = 0.0
        self._told = False

    def wait(self, path: Path, descriptor: int) -> None:
        """Wait a moment.

        Raises:
            _Unusable: other users have kept the lock for too long.
        """
        now = time.monotonic()
        if now - self._begun_s > PATIENCE_S and now - self._looked_s > LOOK_AGAIN_S:
            holder = holder_of(descriptor)
            if holder is None or holder.uid != os.getuid():
                self._others_s += now - (self._looked_s or self._begun_s)
            self._looked_s = now
            if not self._told:
                self._on_wait(_busy(holder, path))
                self._told = True
            if self._others_s > self._others_wait_s:
                raise _Unusable(f"{path} was held for {self._others_s / 60:.0f} min by {holder or 'a process that cannot be seen here'}")
        time.sleep(0.05)


def _busy(holder: Holder | None, path: Path) -> str:
    """Return a sentence that says what a trial waits for."""
    if holder is not None and not holder.command:
        return f"this host's lock {path} is held by {holder}"
    by = "" if holder is None else f" ({holder})" if holder.is_known else f" ({path} names {holder})"
    return f"another feedrate trial is measuring on this host{by}"


def _lock(path: Path, operation: int, patience: _Patience) -> int:
    """Lock a file and return its descriptor.

    Raises:
        _Unusable: the file cannot be opened, is no regular file, or other users hold its lock for too long.
    """
    descriptor = _open(path)
    try:
        while True:
            try:
                fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                patience.wait(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _open(path: Path) -> int:
    """Open a lock's file; any user may have created it, or put something else in its place."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK  # do not follow a link, and do not wait for a pipe
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
            os.fchmod(descriptor, 0o666)  # whatever our umask is, other users must be able to lock the file and write their names into it
        except FileExistsError:
            try:
                descriptor = os.open(path, os.O_RDWR | flags)
            except PermissionError:  # an earlier release or somebody else created it: we can lock it but not write to it
                descriptor = os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        raise _Unusable(f"{path} cannot be opened ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _Unusable(f"{path} is not a regular file")
    return descriptor
