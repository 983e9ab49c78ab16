"""Tries something in a forked process with a time limit: it may hang, or end the process, and then that is the answer."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch._utils import ExceptionWrapper

from feedrate.trainables.failure import sentence

PROBE_S = 10.0
HANGS_S = 3.0
"""What a probe was doing for so long when its time was over hangs; else it is only slow."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """What became of a batch that was loaded again."""

    outcome: str
    """passed, raised, died, hangs or slow."""
    doing: str = ""
    """`sample 17`, the batch (a dataset with __getitems__), collate_fn or pickling."""
    error: str = ""
    """What was raised, or the signal that the process died of."""
    reportable: bool = True
    """False for an exception that a worker cannot send."""


def probe(act: Callable[[Callable[[str], None]], None]) -> Rerun:
    """Run `act` in a forked process for PROBE_S at most; it calls its argument with what it is about to do."""
    with _plain_sigchld(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside other threads, as torch's own workers are
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run_probe(act, reading, writing)
        os.close(writing)
        try:
            return _watch(pid, reading)
        finally:
            os.close(reading)


def _watch(pid: int, reading: int) -> Rerun:
    buffer, doing, since = b"", "", time.monotonic()
    until = since + PROBE_S
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    ended = False
    try:
        while poll.poll(max(until - time.monotonic(), 0) * 1000):
            data = os.read(reading, 1 << 16)
            if not data:
                ended = True
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "outcome" in message:
                    return Rerun(**message)
                doing, since = message["doing"], time.monotonic()
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if ended:
        return Rerun("died", doing, signal.Signals(-status).name if status < 0 else f"exit status {status}")
    return Rerun("hangs" if time.monotonic() - since >= HANGS_S else "slow", doing)


def _run_probe(act: Callable[[Callable[[str], None]], None], reading: int, writing: int) -> None:
    """The probe's whole life."""
    doing = ""

    def send(message: dict[str, Any]) -> None:
        os.write(writing, json.dumps(message).encode() + b"\n")

    def tell(what: str) -> None:
        nonlocal doing
        doing = what
        send({"doing": what})

    try:
        os.close(reading)
        torch.set_num_threads(1)  # as in a worker: the threads of torch's operators did not come along
        try:
            act(tell)
            send({"outcome": "passed"})
        except Exception as error:
            reportable = True
            try:
                check_pickling(ExceptionWrapper(where="in a probe"))  # type: ignore[no-untyped-call]
            except Exception:
                reportable = False
            send({"outcome": "raised", "doing": doing, "error": sentence(error), "reportable": reportable})
        os._exit(0)
    finally:
        os._exit(1)


@contextlib.contextmanager
def _plain_sigchld() -> Iterator[None]:
    """torch's handler raises for any ended child while a dead loader worker is not cleaned up; also the probe's end."""
    try:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except ValueError:  # not the main thread, where torch sets no handler
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


class _Nowhere:
    """A file for bytes that nobody needs."""

    def write(self, data: bytes) -> int:
        return len(data)


class _Pickler(ForkingPickler):
    """Pickles as a worker's queue does, but leaves the contents of tensors out: no shared memory, no open files."""

    def reducer_override(self, value: Any) -> Any:
        return (int, ()) if isinstance(value, torch.UntypedStorage) else NotImplemented


def check_pickling(value: Any) -> None:
    """Raise what pickling this for another process raises."""
    _Pickler(_Nowhere(), pickle.HIGHEST_PROTOCOL).dump(value)
