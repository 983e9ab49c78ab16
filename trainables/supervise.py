"""The thin supervisor: keeps a clean template process, runs requests in children of it, and leaves nothing behind.

Used by the Ray actor and by the commands that need no Ray. Whoever dies first, the others end: the template watches
its socket, the child dies with the template, and what escaped is found by the marker in its environment.
"""

from __future__ import annotations

import fcntl
import json
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

from feedrate.trainables.failure import Failure
from feedrate.trainables.resolve import WorkloadRef
from feedrate.trainables.template import MARKER, kill_group, sweep

SETUP_TIMEOUT_S = 300.0
"""Longest silence before a trial's timed part: making the dataset and the model, first CUDA use."""
GRACE_S = 20.0
"""Silence allowed beyond max_trial_s while a trial is timed."""


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
        os.ftruncate(self._log.fileno(), 0)
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
        child = _Child(self, reading, max_s)
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
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the template
        fcntl.fcntl(self._log, fcntl.F_SETFL, os.O_APPEND)  # emptied for every request
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
            return _failure("hang", "setup", message + self._tail())
        if isinstance(error, EOFError) and self._process is not None:
            message = _how_ended(self._process.wait(), "while the workload's module was imported")
            return _failure("trainer-killed", "setup", message + self._tail())
        return _failure("internal", "setup", f"the trial's template process did not start: {error}{self._tail()}")

    def _tail(self) -> str:
        """The last lines of this request's output, for a failure's sentence."""
        if self._show_output or self._process is None:
            return ""
        log = self._log.fileno()
        text = os.pread(log, 1500, max(os.fstat(log).st_size - 1500, 0)).decode(errors="replace").strip()
        return f"; its last output: {text}" if text else ""


class _Child:
    """One request under way."""

    def __init__(self, template: Template, reading: int, max_s: float) -> None:
        self.template, self.reading, self.max_s = template, reading, max_s
        self.pid: int | None = None
        self.ended = False
        self.phase = "setup"
        self.buffer = b""

    def events(self) -> Iterator[dict[str, Any]]:
        control = self.template._control
        poll = select.poll()
        poll.register(self.reading, select.POLLIN)
        poll.register(control, select.POLLIN)
        deadline: float | None = time.monotonic() + SETUP_TIMEOUT_S
        while True:
            timeout_ms = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
            ready = {number for number, _ in poll.poll(timeout_ms)}
            if not ready:
                yield _failure(
                    "hang",
                    self.phase,
                    f"nothing happened in phase {self.phase} for too long; the trial was ended{self.template._tail()}",
                )
                return
            if self.reading in ready:
                data = os.read(self.reading, 1 << 16)
                if not data:
                    poll.unregister(self.reading)
                for event in self._split(data):
                    if event["event"] == "phase":
                        self.phase = event["phase"]
                    # waiting for the host's lock may take as long as another search; silence in set-up or in the timed part may not
                    allowed = (
                        None
                        if event["event"] == "waiting"
                        else SETUP_TIMEOUT_S
                        if self.phase in ("setup", "warm")
                        else self.max_s + GRACE_S
                    )
                    deadline = None if allowed is None else time.monotonic() + allowed
                    yield event
                    if event["event"] in ("result", "failure", "described"):
                        return
                continue  # events first: the end of the child may be known before its last words are read
            try:
                message = self.template._message(time.monotonic() + 5)
            except (OSError, EOFError):
                yield _failure(
                    "trainer-killed", self.phase, f"the trial's template process was killed{self.template._tail()}"
                )
                return
            if "started" in message:
                self.pid = message["started"]
            elif "ended" in message:
                self.ended = True
                text = _how_ended(os.waitstatus_to_exitcode(message["ended"]), f"in phase {self.phase}")
                yield _failure("trainer-killed", self.phase, text + self.template._tail())
                return

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


def _failure(kind: str, phase: str, message: str) -> dict[str, Any]:
    return {"event": "failure", "usage": False, **Failure(kind=kind, phase=phase, message=message).columns()}
