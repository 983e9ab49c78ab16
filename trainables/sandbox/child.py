"""The supervisor's view of one child process: its events, how long it may be silent, how much memory it may use, its end.

If the set-up of a child took long, the child can be kept: with the same workload and training step, it then measures
another setting of the same batch size with a new loader.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

from feedrate.trainables.checking.described import Described
from feedrate.trainables.diagnose import stacks
from feedrate.trainables.diagnose.hang_message import LOST, dropped, no_batch_because, what_hangs
from feedrate.trainables.diagnose.ranks_hang import rank_that_is_waited_for, ranks_of, which_rank_hangs
from feedrate.trainables.failure import Failure
from feedrate.trainables.isolation.leaving import EXIT_S
from feedrate.trainables.isolation.sweeping import kill_group, remove_batches, sweep
from feedrate.trainables.machine.memory_guard import PERIOD_S, MemoryGuard
from feedrate.trainables.protocol import ChildTask, End, Event, Events, Failed, Measured, Progress, Stopped, event_of
from feedrate.trainables.sandbox.channel import Channel
from feedrate.trainables.sandbox.hang_detector import HangDetector
from feedrate.trainables.sandbox.other_hosts import OtherHosts
from feedrate.trainables.sandbox.template_protocol import Ended, RankStarted, Started

ANSWER_TIMEOUT_S = 5.0
"""Time for a kept child to send its first event, which it sends at once; it takes about a second if the host is busy."""
STOP_TIMEOUT_S = 12.0
"""Time for a child that is to be kept to stop its loader's workers, one of which may be in the middle of a batch."""


class Child:
    """A process that was forked for a request, and may be kept for further requests.

    Args:
        channel: to the template that forked it.
        events: our end of a socket: we receive events from it and send further requests and "stop" to it.
        task: the first request.
        max_s: how long the timed part may be silent.
        guard: watches the child's memory.
        other_hosts: where other processes of its training run; None if there are none.
    """

    def __init__(
        self, channel: Channel, events: socket.socket, task: ChildTask, max_s: float, guard: MemoryGuard, other_hosts: OtherHosts | None = None
    ) -> None:
        self.channel, self.socket, self._other_hosts = channel, events, other_hosts
        self.pid: int | None = None
        self.ranks: dict[int, int] = {}
        """Pid of each rank of a training with several."""
        self.ended = False
        self.buffer = b""
        self._begin(task, max_s, guard)

    def _begin(self, task: ChildTask, max_s: float, guard: MemoryGuard) -> None:
        self.task, self.guard = task, guard
        if task.config is None or not task.config.num_workers:
            guard.way_out = "use a smaller batch_size, or see what the dataset keeps in memory"
        self.kept = self.is_over = False
        self.hangs = HangDetector(max_s)
        self.columns: dict[str, Any] | None = None

    def again(self, task: ChildTask, max_s: float, guard: MemoryGuard) -> bool:
        """Give a kept child another request; return False if it has died."""
        self._begin(task, max_s, guard)
        try:
            self.socket.sendall(task.line())
            self.socket.settimeout(ANSWER_TIMEOUT_S)
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False
        finally:
            self.socket.settimeout(None)

    def stop(self) -> None:
        """Let a child that can be kept end its measurement within a bounded time; then `kept` is True if it did."""
        if self.is_over or not self.task.keep or self.columns is None:
            return
        deadline = time.monotonic() + STOP_TIMEOUT_S
        try:
            self.socket.sendall(b"stop\n")
            while not self.kept and (left_s := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left_s)
                data = self.socket.recv(1 << 16)
                events = list(self._split(data))
                if not data or any(isinstance(event, Failed) for event in events):
                    return
                ends = [event for event in events if isinstance(event, Measured | Stopped)]
                self.kept = any(event.kept for event in ends)
                if ends:
                    return
        except OSError:
            return
        finally:
            self.socket.settimeout(None)

    def events(self) -> Events:
        """Yield the request's events; the last one is an `End`, perhaps a failure that only the supervisor can know."""
        control = self.channel.control
        poll = select.poll()
        reading = self.socket.fileno()
        poll.register(reading, select.POLLIN)
        poll.register(control, select.POLLIN)
        look_s = time.monotonic() + PERIOD_S
        self.hangs.listen()
        while True:
            ready = {number for number, _ in poll.poll(max(min(self.hangs.deadline_s, look_s) - time.monotonic(), 0) * 1000)}
            if time.monotonic() >= look_s:
                look_s = time.monotonic() + PERIOD_S
                if reason := self.guard.crossed(self.channel.pids()):
                    yield self._or_result(failed("out-of-memory", self.hangs.phase, reason))
                    return
                if (elsewhere := self._elsewhere()) is not None:
                    yield self._or_result(elsewhere)
                    return
            if (silent := self.hangs.silent()) is not None:
                yield silent
            if not ready:
                if time.monotonic() >= self.hangs.deadline_s:
                    yield self._or_result(self._hang())
                    return
                continue
            if reading in ready:
                data = self._received()
                if not data:
                    poll.unregister(reading)
                for event in self._split(data):
                    self.hangs.heard(event)
                    if isinstance(event, Progress):
                        self.columns = event.columns
                    self.kept = isinstance(event, Measured | Stopped | Described) and event.kept
                    self.is_over = isinstance(event, End)
                    yield self._first(event) if isinstance(event, Failed) else event
                    if self.is_over:
                        return
                continue  # read events first: the template may report the end of the child before we have read its last events
            try:
                answer = self.channel.answer(time.monotonic() + 5)
            except (OSError, EOFError):
                text = f"the trial's template process was killed{self.channel.tail()}"
                yield self._or_result(failed("trainer-killed", self.hangs.phase, text))
                return
            if isinstance(answer, Started):
                self.pid = answer.pid
            elif isinstance(answer, RankStarted):
                self.ranks[answer.number] = answer.pid
            elif isinstance(answer, Ended):
                self.ended = True
                text = how_ended(os.waitstatus_to_exitcode(answer.status), f"in phase {self.hangs.phase}")
                yield self._or_result(failed("trainer-killed", self.hangs.phase, text + self.channel.tail()))
                return

    def _first(self, failure: Failed) -> Failed:
        """Return the failure that came first: this one, or that of another host. If a rank dies, the others fail, too, but report that a second later."""
        elsewhere = self._elsewhere()
        if elsewhere is None and self._other_hosts is not None:
            self._other_hosts.heard(failure)
        return elsewhere or failure

    def _elsewhere(self) -> Failed | None:
        """Return the failure that another host has reported; None if there is none."""
        return None if self._other_hosts is None else self._other_hosts.failure()

    def _or_result(self, failure: Failed) -> Measured | Failed:
        """Return the measurement if the trial only had to end: how it ends does not change the measurement, nor what a script does after its epoch."""
        if self.columns is None or self.hangs.phase not in ("between epochs", "teardown"):
            return self._first(failure)
        why = {"between_epochs_failure": failure.failure.message} if self.hangs.phase == "between epochs" else {}
        return Measured(columns=self.columns | why)

    def _hang(self) -> Failed:
        """Return a failure that names where the trial hangs, which we ask while it still hangs."""
        pids = self.channel.pids()
        found = stacks.read(pids, trainer=self.pid, path=self.channel.stacks_path)
        what = which_rank_hangs(found, ranks_of(pids) | self.ranks, self.hangs.phase) or what_hangs(found, self.hangs.phase)
        if self._other_hosts is not None:
            what = rank_that_is_waited_for(found, ranks_of(pids) | self.ranks, self.hangs.phase) or self._other_hosts.waited_for() or what
        if what == LOST and (why := dropped(self.channel.output(1 << 16))):
            kind, message = no_batch_because(why)
            return failed(kind, self.hangs.phase, message, stacks.text_of(found))
        message = f"{what}: nothing happened in phase {self.hangs.phase} for {self.hangs.allowed_s:.0f} s, and the trial was ended"
        return failed("hang", self.hangs.phase, message + self.channel.tail(), stacks.text_of(found))

    def _received(self) -> bytes:
        try:
            return self.socket.recv(1 << 16)
        except ConnectionResetError:  # the child died without reading everything that we sent
            return b""

    def _split(self, data: bytes) -> Iterator[Event]:
        self.buffer += data
        while b"\n" in self.buffer:
            line, _, self.buffer = self.buffer.partition(b"\n")
            yield event_of(line)

    def end(self) -> bool:
        """Let the child run its exit functions, kill it and every process that it started, and wait until it is gone.

        Returns False if the template has died; the caller should then close the template.
        """
        self.socket.close()
        try:
            while self.pid is None:
                if isinstance(answer := self.channel.answer(time.monotonic() + 10), Started):
                    self.pid = answer.pid
            members = self.channel.pids()
            self._let_leave(self.pid)
            sweep(self.channel.marker, group=self.pid, spare=self.channel.spare)
            remove_batches(members)  # batches of workers that ended with the child while they were writing one
            while not self.ended:
                self.ended = isinstance(self.channel.answer(time.monotonic() + 10), Ended)
        except (OSError, EOFError):
            if self.pid is not None:
                kill_group(self.pid)
            return False
        return True

    def _let_leave(self, pid: int) -> None:
        """Wait EXIT_S for the child to end by itself; if it was not about to end, send it SIGTERM first."""
        with contextlib.suppress(ProcessLookupError):
            if not self.is_over and not self.ended:
                os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + EXIT_S
        with contextlib.suppress(TimeoutError):
            while not self.ended:
                self.ended = isinstance(self.channel.answer(until), Ended)


def how_ended(code: int, when: str) -> str:
    """Return a message about a process that ended without an event; `code` as in subprocess (negative: a signal)."""
    if code < 0:
        return f"the training process was killed by {signal.Signals(-code).name} {when}"
    return f"the training process ended by itself (exit status {code}) {when}: look for os._exit in the workload"


def failed(kind: str, phase: str, message: str, stacks: str | None = None) -> Failed:
    """Return the message about a failure that the child process could not report itself, because it hangs or has ended."""
    return Failed(failure=Failure(kind=kind, phase=phase, message=message, stacks=stacks))
