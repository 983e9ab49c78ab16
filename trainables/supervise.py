"""The thin supervisor: keeps a clean template process, runs requests in children of it, and leaves nothing behind.

Used by the Ray actor and by the commands that need no Ray. Whoever dies first, the others end: the template watches
its socket, the child dies with the template, and what escaped is found by the marker in its environment.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from feedrate.trainables import stacks
from feedrate.trainables.failure import Failure
from feedrate.trainables.guard import PERIOD_S, MemoryGuard
from feedrate.trainables.hang import LOST, dropped, no_batch_because, what_hangs
from feedrate.trainables.resolve import WorkloadRef
from feedrate.trainables.template import MARKER, kill_group, marked, sweep

SETUP_TIMEOUT_S = 300.0
"""Longest silence before a trial's timed part: making the dataset and the model, first CUDA use."""
GRACE_S = 20.0
"""Silence allowed beyond max_trial_s while a trial is timed: the loader's timeout may pass, and the trial then looks for
the reason, for 10 s."""
TEARDOWN_TIMEOUT_S = 10.0
"""Silence allowed when everything is measured: torch waits 5 s for a worker that does not end."""


class Template:
    """A template process for one workload; started on first use, and again after it died.

    Args:
        ref: the workload.
        cpus: CPUs the trials may run on; None leaves the affinity alone.
        threads: torch's intra-op threads; None leaves torch's own choice.
        environment: variables to set, or with None to remove, for trials.
        show_output: let the workload's output through to our stderr; otherwise its tail goes into failures.
    """

    def __init__(
        self,
        ref: WorkloadRef,
        *,
        cpus: set[int] | None = None,
        threads: int | None = None,
        environment: Mapping[str, str | None] | None = None,
        show_output: bool = False,
    ) -> None:
        self.ref = ref
        self._hello = {"workload": ref.to_json(), "cpus": sorted(cpus) if cpus else None, "threads": threads}
        self._environment = dict(environment or {})
        self._show_output = show_output
        self._process: subprocess.Popen[bytes] | None = None
        self._marker = ""
        self._spare: set[int] = set()
        self._temp: str | None = None

    def run(self, request: dict[str, Any], *, max_s: float = SETUP_TIMEOUT_S) -> Iterator[dict[str, Any]]:
        """Run one request in a fresh child and yield its events (see child.py), the last one always an end.

        Closing the generator ends the child and everything it started. A child that dies, hangs or takes its
        template with it ends in a failure event too.

        Args:
            request: {"op": "measure" | "describe", ...}; the workload is added.
            max_s: how long the timed part may stay silent.
        """
        try:
            self._start()
        except (OSError, EOFError) as error:
            failure = self._not_started(error)
            self.close()
            yield failure
            return
        try:
            guard = MemoryGuard.from_environment()
        except ValueError as error:
            yield _failure("internal", "setup", str(error))
            return
        os.ftruncate(self._log.fileno(), 0)
        os.ftruncate(self._stacks.fileno(), 0)
        reading, writing = os.pipe()
        try:
            data = json.dumps({**request, "workload": self.ref.to_json()}).encode() + b"\n"
            socket.send_fds(self._control, [data], [writing])
        except OSError:
            os.close(reading)
            failure = _failure("trainer-killed", "setup", f"the trial's template process was killed{self._tail()}")
            self.close()
            yield failure
            return
        finally:
            os.close(writing)
        child = _Child(self, reading, max_s, guard)
        try:
            yield from child.events()
        finally:
            child.end()
            os.close(reading)

    def close(self) -> None:
        """End the template and every process that came from it."""
        if self._process is None:
            return
        self._control.close()
        self._process.kill()
        self._process.wait()
        sweep(self._marker, spare={os.getpid()})
        self._process = None
        self._log.close()
        self._stacks.close()
        if self._temp is not None:
            shutil.rmtree(self._temp, ignore_errors=True)
            self._temp = None

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._marker = uuid.uuid4().hex
        # Ray's token opens the cluster to whoever has it: user code does not need it
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
        for key, value in self._environment.items():
            environment.pop(key, None)
            if value is not None:
                environment[key] = value
        environment[MARKER] = self._marker
        self._log, self._stacks = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - live as long as the template
        fcntl.fcntl(self._log, fcntl.F_SETFL, os.O_APPEND)  # emptied for every request
        environment[stacks.VARIABLE] = self._stacks_path = f"/proc/{os.getpid()}/fd/{self._stacks.fileno()}"
        output = None if self._show_output else self._log
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "feedrate.trainables.template", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=2 if output is None else output,  # a notebook's sys.stderr has no descriptor
                stderr=output,
                cwd=self.ref.cwd if self.ref.cwd and os.path.isdir(self.ref.cwd) else None,
                start_new_session=True,  # Ctrl-C in the terminal is for the driver alone
            )
        self._control.sendall(json.dumps(self._hello).encode() + b"\n")
        self._messages = b""
        ready = self._message(time.monotonic() + SETUP_TIMEOUT_S)
        self._spare, self._temp, self.clean = {os.getpid(), *ready["spare"]}, ready["temp"], ready["clean"]

    def _message(self, deadline: float) -> dict[str, Any]:
        """The template's next message.

        Raises:
            EOFError: the template died. TimeoutError (an OSError): it stayed silent.
        """
        while b"\n" not in self._messages:
            self._control.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self._control.recv(4096)
            if not data:
                raise EOFError
            self._messages += data
        line, _, self._messages = self._messages.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _not_started(self, error: Exception) -> dict[str, Any]:
        """Why there is no template: it imports torch and the workload's module."""
        if isinstance(error, TimeoutError):
            message = f"importing the workload's module took more than {SETUP_TIMEOUT_S:.0f} s"
            pid = self._process.pid if self._process is not None else 0
            found = stacks.read(marked(self._marker), trainer=pid, path=self._stacks_path)
            place = next((stack.place() for stack in found if stack.pid == pid), None)
            message += f": it hangs in {place}" if place is not None else ""
            return _failure("hang", "setup", message + self._tail(), stacks.text_of(found))
        if isinstance(error, EOFError) and self._process is not None:
            message = _how_ended(self._process.wait(), "while the workload's module was imported")
            return _failure("trainer-killed", "setup", message + self._tail())
        return _failure("internal", "setup", f"the trial's template process did not start: {error}{self._tail()}")

    def _tail(self) -> str:
        """The last lines of this request's output, for a failure's sentence."""
        text = self._output(1500).strip()
        return f"; its last output: {text}" if text else ""

    def _output(self, num_bytes: int) -> str:
        """The end of this request's output; empty where it goes to our stderr."""
        if self._show_output or self._process is None:
            return ""
        log = self._log.fileno()
        return os.pread(log, num_bytes, max(os.fstat(log).st_size - num_bytes, 0)).decode(errors="replace")


class _Child:
    """One request under way."""

    def __init__(self, template: Template, reading: int, max_s: float, guard: MemoryGuard) -> None:
        self.template, self.reading, self.max_s, self.guard = template, reading, max_s, guard
        self.pid: int | None = None
        self.ended = False
        self.phase = "setup"
        self.allowed_s: float | None = SETUP_TIMEOUT_S
        self.columns: dict[str, Any] | None = None
        self.buffer = b""

    def events(self) -> Iterator[dict[str, Any]]:
        control = self.template._control
        poll = select.poll()
        poll.register(self.reading, select.POLLIN)
        poll.register(control, select.POLLIN)
        deadline = _deadline(self.allowed_s)
        look_s = time.monotonic() + PERIOD_S
        while True:
            ready = {number for number, _ in poll.poll(max(min(deadline, look_s) - time.monotonic(), 0) * 1000)}
            if time.monotonic() >= look_s:
                look_s = time.monotonic() + PERIOD_S
                if reason := self.guard.crossed(self._pids()):
                    yield self._or_result(_failure("out-of-memory", self.phase, reason))
                    return
            if not ready:
                if time.monotonic() >= deadline:
                    yield self._or_result(self._hang())
                    return
                continue
            if self.reading in ready:
                data = os.read(self.reading, 1 << 16)
                if not data:
                    poll.unregister(self.reading)
                for event in self._split(data):
                    self._learn(event)
                    deadline = _deadline(self.allowed_s)
                    yield event
                    if event["event"] in ("result", "failure", "described"):
                        return
                continue  # events first: the end of the child may be known before its last words are read
            try:
                message = self.template._message(time.monotonic() + 5)
            except (OSError, EOFError):
                text = f"the trial's template process was killed{self.template._tail()}"
                yield self._or_result(_failure("trainer-killed", self.phase, text))
                return
            if "started" in message:
                self.pid = message["started"]
            elif "ended" in message:
                self.ended = True
                text = _how_ended(os.waitstatus_to_exitcode(message["ended"]), f"in phase {self.phase}")
                yield self._or_result(_failure("trainer-killed", self.phase, text + self.template._tail()))
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
        else:
            self.allowed_s = TEARDOWN_TIMEOUT_S if self.phase == "teardown" else self.max_s + GRACE_S

    def _or_result(self, failure: dict[str, Any]) -> dict[str, Any]:
        """What was measured, where the trial had only to end: how it ends does not change that."""
        if self.phase == "teardown" and self.columns is not None:
            return {"event": "result", "columns": self.columns}
        return failure

    def _pids(self) -> Iterator[int]:
        """The trial's processes; those that live as long as the template are not of them."""
        yield from (pid for pid in marked(self.template._marker) if pid not in self.template._spare)

    def _hang(self) -> dict[str, Any]:
        """Where the trial hangs, asked while it still does."""
        found = stacks.read(self._pids(), trainer=self.pid, path=self.template._stacks_path)
        what = what_hangs(found, self.phase)
        if what == LOST and (why := dropped(self.template._output(1 << 16))):
            kind, message = no_batch_because(why)
            return _failure(kind, self.phase, message, stacks.text_of(found))
        message = f"{what}: nothing happened in phase {self.phase} for {self.allowed_s:.0f} s, and the trial was ended"
        return _failure("hang", self.phase, message + self.template._tail(), stacks.text_of(found))

    def _split(self, data: bytes) -> Iterator[dict[str, Any]]:
        self.buffer += data
        while b"\n" in self.buffer:
            line, _, self.buffer = self.buffer.partition(b"\n")
            yield json.loads(line)

    def end(self) -> None:
        """Kill the child and all that came from it, and wait for the template's word that the child is gone."""
        template = self.template
        if template._process is None:
            return
        try:
            while self.pid is None:
                self.pid = template._message(time.monotonic() + 10).get("started")
            sweep(template._marker, group=self.pid, spare=template._spare)
            while not self.ended:
                self.ended = "ended" in template._message(time.monotonic() + 10)
        except (OSError, EOFError):
            if self.pid is not None:
                kill_group(self.pid)
            template.close()


def _how_ended(code: int, when: str) -> str:
    """A sentence about a process that ended without a word; `code` as subprocess gives it."""
    if code < 0:
        return f"the training process was killed by {signal.Signals(-code).name} {when}"
    return f"the training process ended by itself (exit status {code}) {when}: look for os._exit in the workload"


def _deadline(allowed_s: float | None) -> float:
    return math.inf if allowed_s is None else time.monotonic() + allowed_s


def _failure(kind: str, phase: str, message: str, stacks: str | None = None) -> dict[str, Any]:
    failure = Failure(kind=kind, phase=phase, message=message, stacks=stacks)
    return {"event": "failure", "usage": False, **failure.columns()}
