"""One child under way: its events, how long it may be silent, what it may take, its end.

A child that took long to set up can be kept: it has the workload and its training step, and measures another setting of
the same batch size with a new loader.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

from feedrate.trainables.diagnose import stacks
from feedrate.trainables.diagnose.hang_message import LOST, dropped, no_batch_because, what_hangs
from feedrate.trainables.failure import Failure
from feedrate.trainables.isolation.leaving import EXIT_S
from feedrate.trainables.isolation.sweeping import kill_group, remove_batches, sweep
from feedrate.trainables.machine.memory_guard import PERIOD_S, MemoryGuard
from feedrate.trainables.sandbox.channel import Channel

SETUP_TIMEOUT_S = 300.0
"""Longest silence before a trial's timed part: making the dataset and the model, first CUDA use."""
GRACE_S = 20.0
"""Silence allowed beyond max_trial_s while a trial is timed: the loader's timeout may pass, and the trial then looks for
the reason."""
RERUN_TIMEOUT_S = 10.0
"""Silence allowed while one sample is loaded again to find out why a batch failed."""
TEARDOWN_TIMEOUT_S = 10.0
"""Silence allowed when everything is measured: torch waits 5 s for a worker that does not end."""
SILENT_S = 30.0
"""A child that says nothing for so long is said to, and again as long as it does."""
ANSWER_TIMEOUT_S = 5.0
"""Time for a kept child to say its first word, which it has ready: a second where the host is taken."""
STOP_TIMEOUT_S = 12.0
"""Time for a child that is to be kept to stop its loader's workers, one of which may be in the middle of a batch."""


class Child:
    """A process that was forked for a request, and may be kept for further ones.

    Args:
        channel: to the template that forked it.
        events: our end of a socket: events come out of it, further requests and "stop" go in.
        request: the first one.
        max_s: how long the timed part may stay silent.
        guard: watches its memory.
    """

    def __init__(
        self, channel: Channel, events: socket.socket, request: dict[str, Any], max_s: float, guard: MemoryGuard
    ) -> None:
        self.channel, self.socket = channel, events
        self.pid: int | None = None
        self.ended = False
        self.buffer = b""
        self._begin(request, max_s, guard)

    def _begin(self, request: dict[str, Any], max_s: float, guard: MemoryGuard) -> None:
        self.request, self.max_s, self.guard = request, max_s, guard
        if not request.get("config", {}).get("num_workers"):
            guard.way_out = "use a smaller batch_size, or see what the dataset keeps in memory"
        self.kept = self.is_over = False
        self.phase = "setup"
        self.allowed_s: float | None = SETUP_TIMEOUT_S
        self.columns: dict[str, Any] | None = None

    def again(self, request: dict[str, Any], max_s: float, guard: MemoryGuard) -> bool:
        """Give a kept child another request; False when it has died meanwhile."""
        self._begin(request, max_s, guard)
        try:
            self.socket.sendall(json.dumps(request).encode() + b"\n")
            self.socket.settimeout(ANSWER_TIMEOUT_S)
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False
        finally:
            self.socket.settimeout(None)

    def stop(self) -> None:
        """Let a child that can be kept end what it measures; `kept` says whether it did, in bounded time."""
        if self.is_over or not self.request.get("keep") or self.columns is None:
            return
        deadline = time.monotonic() + STOP_TIMEOUT_S
        try:
            self.socket.sendall(b"stop\n")
            while not self.kept and (left_s := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left_s)
                data = self.socket.recv(1 << 16)
                events = list(self._split(data))
                if not data or any(event["event"] == "failure" for event in events):
                    return
                self.kept = any(event.get("kept") is True for event in events)
                if any(event["event"] in ("result", "stopped") for event in events):
                    return
        except OSError:
            return
        finally:
            self.socket.settimeout(None)

    def events(self) -> Iterator[dict[str, Any]]:
        control = self.channel.control
        poll = select.poll()
        reading = self.socket.fileno()
        poll.register(reading, select.POLLIN)
        poll.register(control, select.POLLIN)
        deadline = _deadline(self.allowed_s)
        look_s = time.monotonic() + PERIOD_S
        since_s, tell_s = time.monotonic(), time.monotonic() + SILENT_S
        while True:
            ready = {number for number, _ in poll.poll(max(min(deadline, look_s) - time.monotonic(), 0) * 1000)}
            if time.monotonic() >= look_s:
                look_s = time.monotonic() + PERIOD_S
                if reason := self.guard.crossed(self.channel.pids()):
                    yield self._or_result(failure_event("out-of-memory", self.phase, reason))
                    return
            if time.monotonic() >= tell_s:
                tell_s = time.monotonic() + SILENT_S
                waits = self.allowed_s is None
                yield {"event": "silent", "phase": self.phase, "waits": waits, "silent_s": time.monotonic() - since_s}
            if not ready:
                if time.monotonic() >= deadline:
                    yield self._or_result(self._hang())
                    return
                continue
            if reading in ready:
                data = self._received()
                if not data:
                    poll.unregister(reading)
                for event in self._split(data):
                    self._learn(event)
                    deadline = _deadline(self.allowed_s)
                    since_s, tell_s = time.monotonic(), time.monotonic() + SILENT_S
                    self.kept = event.pop("kept", False)
                    self.is_over = event["event"] in ("result", "failure", "described", "rerun")
                    yield event
                    if self.is_over:
                        return
                continue  # events first: the end of the child may be known before its last words are read
            try:
                message = self.channel.message(time.monotonic() + 5)
            except (OSError, EOFError):
                text = f"the trial's template process was killed{self.channel.tail()}"
                yield self._or_result(failure_event("trainer-killed", self.phase, text))
                return
            if "started" in message:
                self.pid = message["started"]
            elif "ended" in message:
                self.ended = True
                text = how_ended(os.waitstatus_to_exitcode(message["ended"]), f"in phase {self.phase}")
                yield self._or_result(failure_event("trainer-killed", self.phase, text + self.channel.tail()))
                return

    def _learn(self, event: dict[str, Any]) -> None:
        """What an event says about where the trial is, and how long it may be silent from here on."""
        if event["event"] == "phase":
            self.phase = event["phase"]
        elif event["event"] == "progress":
            self.columns = event["columns"]
        if event["event"] == "waiting":
            self.allowed_s = None  # waiting for the host's lock may take as long as another search
        elif self.phase in ("setup", "warm"):
            self.allowed_s = SETUP_TIMEOUT_S
        elif self.phase == "rerun":
            self.allowed_s = RERUN_TIMEOUT_S
        else:
            self.allowed_s = TEARDOWN_TIMEOUT_S if self.phase == "teardown" else self.max_s + GRACE_S

    def _or_result(self, failure: dict[str, Any]) -> dict[str, Any]:
        """What was measured, where the trial had only to end: how it ends does not change that."""
        if self.phase == "teardown" and self.columns is not None:
            return {"event": "result", "columns": self.columns}
        return failure

    def _hang(self) -> dict[str, Any]:
        """Where the trial hangs, asked while it still does."""
        found = stacks.read(self.channel.pids(), trainer=self.pid, path=self.channel.stacks_path)
        what = what_hangs(found, self.phase)
        if what == LOST and (why := dropped(self.channel.output(1 << 16))):
            kind, message = no_batch_because(why)
            return failure_event(kind, self.phase, message, stacks.text_of(found))
        message = f"{what}: nothing happened in phase {self.phase} for {self.allowed_s:.0f} s, and the trial was ended"
        return failure_event("hang", self.phase, message + self.channel.tail(), stacks.text_of(found))

    def _received(self) -> bytes:
        try:
            return self.socket.recv(1 << 16)
        except ConnectionResetError:  # it died with something of ours unread
            return b""

    def _split(self, data: bytes) -> Iterator[dict[str, Any]]:
        self.buffer += data
        while b"\n" in self.buffer:
            line, _, self.buffer = self.buffer.partition(b"\n")
            yield json.loads(line)

    def end(self) -> bool:
        """Let the child run its exit functions, kill it and all that came from it, and wait until it is gone.

        Returns False where the template has died, and is to be closed.
        """
        self.socket.close()
        try:
            while self.pid is None:
                self.pid = self.channel.message(time.monotonic() + 10).get("started")
            members = self.channel.pids()
            self._let_leave(self.pid)
            sweep(self.channel.marker, group=self.pid, spare=self.channel.spare)
            remove_batches(members)  # of workers that ended with the child, in the middle of a batch
            while not self.ended:
                self.ended = "ended" in self.channel.message(time.monotonic() + 10)
        except (OSError, EOFError):
            if self.pid is not None:
                kill_group(self.pid)
            return False
        return True

    def _let_leave(self, pid: int) -> None:
        """Wait EXIT_S for the child to end by itself; one that was not about to is asked to by SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            if not self.is_over and not self.ended:
                os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + EXIT_S
        with contextlib.suppress(TimeoutError):
            while not self.ended:
                self.ended = "ended" in self.channel.message(until)


def how_ended(code: int, when: str) -> str:
    """A sentence about a process that ended without a word; `code` as subprocess gives it."""
    if code < 0:
        return f"the training process was killed by {signal.Signals(-code).name} {when}"
    return f"the training process ended by itself (exit status {code}) {when}: look for os._exit in the workload"


def _deadline(allowed_s: float | None) -> float:
    return math.inf if allowed_s is None else time.monotonic() + allowed_s


def failure_event(kind: str, phase: str, message: str, stacks: str | None = None) -> dict[str, Any]:
    """The event of a failure that is known outside of the child."""
    failure = Failure(kind=kind, phase=phase, message=message, stacks=stacks)
    return {"event": "failure", "usage": False, **failure.columns()}
