"""Run user code in a separate forked process with a deadline: if it hangs or ends the process, the result is a failure.

A process that ends by itself runs the exit handlers that were registered in it (`atexit`, `weakref.finalize`). So whatever
the user's code created there, such as named shared memory, is gone before the next process creates it again.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, TypeVar

import torch

from feedrate.trainables.diagnose import stacks
from feedrate.trainables.diagnose.hang_message import waits_where
from feedrate.trainables.failure import Failure, classify
from feedrate.trainables.isolation.leaving import EXIT_S, die_with_parent, forget_inherited_exits, leave
from feedrate.trainables.machine.process import tree_pids

T = TypeVar("T")

FEEDER_LIMIT_S = 2.0
INTERRUPT_S = 0.3
"""Time for the work to end after it was interrupted, before its loader workers are killed."""
_GOES_ON = b"goes on"
_to_parent: Connection | None = None
"""This process's end of the channel, if `IsolatedProcess` started it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Died(Failure):
    """The process ended before its work was done."""

    exit_code: int
    """Exit code as in subprocess: negative for a signal."""


class OutOfTime(Exception):
    """The time was over while the work was still making progress: it is slow, it does not hang."""


def goes_on() -> None:
    """Report to the waiting process that the work makes progress; has no effect outside of `isolated`."""
    if _to_parent is not None:
        _to_parent.send_bytes(_GOES_ON)


def isolated(work: Callable[[], T], limit_s: float, *raises: type[Exception]) -> T | Failure:
    """Run `work` in a forked process and return its result, or a failure if it raises, dies or hangs.

    Nothing that the work started is left running. Its result must be picklable.

    Args:
        work: what to run.
        limit_s: longest time for it.
        raises: exceptions of `work` that are raised here, too, instead of a failure.

    Raises:
        OutOfTime: the time was over, but the work had called `goes_on` in the last third of it.
        Exception: of a type in `raises`.
    """

    def act(channel: Connection) -> None:
        signal.signal(signal.SIGINT, _interrupted)
        torch.set_num_threads(1)  # as in loader workers, because threads do not survive the fork
        channel.send_bytes(outcome_of(work, *raises))

    process = IsolatedProcess(act)
    try:
        received: T | Failure = process.receive(limit_s)
        return received
    finally:
        process.end()


class IsolatedProcess:
    """A forked process in its own process group, with a channel to it.

    Args:
        act: what the process does; it gets its end of the channel and sends what `outcome_of` returns.
    """

    def __init__(self, act: Callable[[Connection], None]) -> None:
        self.channel, theirs = Pipe()
        self._stacks = None if stacks.VARIABLE in os.environ else tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        path = "" if self._stacks is None else f"/proc/{os.getpid()}/fd/{self._stacks.fileno()}"
        self._stacks_path = path or os.environ[stacks.VARIABLE]
        parent = os.getpid()
        for stream in (sys.stdout, sys.stderr):  # otherwise both processes would write what is buffered here
            with contextlib.suppress(Exception):
                stream.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(act, theirs, parent)
        theirs.close()
        self._watch = os.pidfd_open(self.pid)
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)  # parent and child both set it, so that it is set in time whichever runs first

    def _run(self, act: Callable[[Connection], None], channel: Connection, parent: int) -> None:
        """Run everything that the child process does, from the fork to its end."""
        global _to_parent
        try:
            forget_inherited_exits()
            self.channel.close()
            os.setpgid(0, 0)
            die_with_parent()
            if os.getppid() != parent:
                return
            gc.freeze()  # otherwise a collection would copy every page of the parent that contains an object
            if self._stacks is not None:
                os.environ[stacks.VARIABLE] = self._stacks_path
                stacks.install()
            _to_parent = channel
            act(channel)
            _give_back_semaphores()
        finally:
            leave()

    def receive(self, limit_s: float) -> Any:
        """Return the next outcome that the process sends, or a failure if it dies or hangs.

        Raises:
            OutOfTime: as for `isolated`.
            Exception: of a type that the process passed to `outcome_of`.
        """
        begin = time.monotonic()
        progress_s = begin
        while True:
            left_s = begin + limit_s - time.monotonic()
            if not wait([self.channel, self._watch], max(left_s, 0.0)):
                if progress_s > begin + 2 / 3 * limit_s:
                    self._interrupt()
                    raise OutOfTime
                return self._hang(limit_s)
            try:
                data = self.channel.recv_bytes() if self.channel.poll() else None
            except (EOFError, ConnectionResetError):
                data = None
            if data is None:
                return self._died()
            if data != _GOES_ON:
                return _opened(data)
            progress_s = time.monotonic()

    def end(self) -> None:
        """Give the process EXIT_S to end by itself, then kill it and its process group."""
        self.channel.close()
        wait([self._watch], EXIT_S)
        self.kill()

    def kill(self) -> None:
        """Kill the process and its process group."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        with contextlib.suppress(OSError):
            os.close(self._watch)
        if self._stacks is not None:
            self._stacks.close()

    def _hang(self, limit_s: float) -> Failure:
        """Return a failure that says where the process and its workers wait, which we ask while they do; then interrupt it."""
        found = stacks.read(tree_pids(self.pid), trainer=self.pid, path=self._stacks_path)
        where = waits_where(found)
        message = f"nothing came within {limit_s:.0f} s" + (f": {where}" if where else "")
        self._interrupt()
        return Failure(kind="hang", phase="loader", message=message, stacks=stacks.text_of(found))

    def _interrupt(self) -> None:
        """Interrupt the work as Ctrl-C would, so that exit handlers run; `kill` kills whatever does not end."""
        workers = tree_pids(self.pid)[1:]
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGINT)
        if not wait([self._watch], INTERRUPT_S):
            for pid in workers:  # because torch would wait for them
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            wait([self._watch], EXIT_S)

    def _died(self) -> Failure:
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended by itself (exit status {code})"
        return Died(
            kind="trainer-killed", phase="loader", message=f"the process that loads samples {how}", exit_code=code
        )


def outcome_of(work: Callable[[], Any], *raises: type[Exception]) -> bytes:
    """Run the work and return its result, or the failure of its exception, as bytes for `IsolatedProcess.receive`.

    Args:
        work: its result must be picklable.
        raises: exceptions that `receive` raises instead of returning a failure.
    """
    try:
        return pickle.dumps(("value", work()))
    except raises as error:
        return pickle.dumps(("error", error))
    except BaseException as error:  # user code may raise anything, even SystemExit
        return pickle.dumps(("value", classify(error, "loader")))


def _opened(data: bytes) -> Any:
    kind, content = pickle.loads(data)
    if kind == "error":
        raise content
    return content


def _interrupted(number: int, frame: object) -> None:
    """Handle SIGINT as in the user's program; in a trial's process, SIGINT has the system's default action, which runs no exit handlers."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for each worker that we kill
    raise KeyboardInterrupt


def _give_back_semaphores() -> None:
    """Let finalizers unlink the named semaphores of spawned workers; the feeder thread of a queue holds some of them."""
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":  # it was told to end when the loader was deleted, and ends a moment later
            thread.join(FEEDER_LIMIT_S)
    gc.collect()
