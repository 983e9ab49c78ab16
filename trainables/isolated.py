"""Runs one piece of user code in a forked process of its own: every look begins with the same dataset and generators."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from feedrate.trainables.failure import Failure, classify
from feedrate.trainables.leaving import EXIT_S, forget_inherited_exits, leave

T = TypeVar("T")

FEEDER_LIMIT_S = 2.0


def isolated(work: Callable[[], T], limit_s: float) -> T | Failure:
    """What `work` returns when it is run in a forked process; a failure where it raises, dies or takes too long.

    Nothing that the work started is left running. Its result must be picklable.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            os.setpgid(0, 0)
            forget_inherited_exits()
            torch.set_num_threads(1)  # as in loader workers: threads do not survive the fork
            done = _outcome(work)
            _give_back_semaphores()
            _send(writing, done)
        finally:
            leave()
    os.close(writing)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # both sides set it, so that neither can be too late
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    data, size, deadline = b"", 8, time.monotonic() + limit_s
    try:
        while len(data) < size:
            if not poll.poll(max(deadline - time.monotonic(), 0.0) * 1000):
                return Failure(kind="hang", phase="loader", message=f"nothing came within {limit_s:.0f} s")
            more = os.read(reading, 1 << 20)
            if not more:
                return _died(pid)
            data += more
            size = 8 + int.from_bytes(data[:8], "little") if len(data) >= 8 else size
        outcome: T | Failure = pickle.loads(data[8:size])
        return outcome
    finally:
        os.close(reading)
        if len(data) >= size:  # it has answered, and runs its exit functions
            watch = os.pidfd_open(pid)
            select.select([watch], [], [], EXIT_S)
            os.close(watch)
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _give_back_semaphores() -> None:
    """The semaphores of spawned workers have names, which their finalizers unlink; a queue's feeder thread holds some."""
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":  # told to end when the loader went, and ends a moment later
            thread.join(FEEDER_LIMIT_S)
    gc.collect()


def _outcome(work: Callable[[], T]) -> bytes:
    try:
        return pickle.dumps(work())
    except BaseException as error:  # user code may raise anything, SystemExit too
        return pickle.dumps(classify(error, "loader"))


def _send(descriptor: int, outcome: bytes) -> None:
    data = len(outcome).to_bytes(8, "little") + outcome
    while data:
        data = data[os.write(descriptor, data) :]


def _died(pid: int) -> Failure:
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended by itself (exit status {code})"
    return Failure(kind="trainer-killed", phase="loader", message=f"the process that loads samples {how}")
