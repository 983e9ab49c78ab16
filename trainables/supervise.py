"""The thin supervisor: keeps a clean template process, runs requests in children of it, and leaves nothing behind.

Used by the Ray actor and by the commands that need no Ray. Whoever dies first, the others end: the template watches
its socket, the child dies with the template, and what escaped is found by the marker in its environment.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from feedrate.trainables import stacks
from feedrate.trainables.doubt import Doubt, Rerun, resolve
from feedrate.trainables.failure import Failure
from feedrate.trainables.guard import MemoryGuard
from feedrate.trainables.hang import INTERPRETERS_S
from feedrate.trainables.host_lock import OTHERS_WAIT_S
from feedrate.trainables.leaving import EXIT_S
from feedrate.trainables.resolve import WorkloadRef
from feedrate.trainables.template import MARKER, marked, sweep
from feedrate.trainables.watched import SETUP_TIMEOUT_S, Child, failure_event, how_ended

RERUN_S = 20.0
"""Time for loading failed batches again, once their dataset is made."""
_MADE_AGAIN = (("user-code", "setup"), ("user-code", "loader"))
"""Kind and phase of failures after which a kept child, which makes its loader a second time, is no witness."""


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
        self._kept: Child | None = None
        self.lock_wait_s = OTHERS_WAIT_S
        """How long trials wait for a lock of the host that another user holds."""

    def run(self, request: dict[str, Any], *, max_s: float = SETUP_TIMEOUT_S) -> Iterator[dict[str, Any]]:
        """Run one request in a child and yield its events (see child.py), the last one always an end.

        The child is fresh, unless this request and the last one said "keep" and need the same step, which took long to
        make.

        Closing the generator ends the child and everything it started. A child that dies, hangs or takes its
        template with it ends in a failure event too.

        Args:
            request: {"op": "measure" | "describe", ...}; the workload is added.
            max_s: how long the timed part may stay silent.
        """
        try:
            self._start()
        except (OSError, EOFError) as error:
            not_started = self._not_started(error)
            self.close()
            yield not_started
            return
        try:
            guard = MemoryGuard.from_environment()
        except ValueError as error:
            yield failure_event("internal", "setup", str(error))
            return
        os.ftruncate(self._log.fileno(), 0)
        os.ftruncate(self._stacks.fileno(), 0)
        if request.get("config", {}).get("multiprocessing_context") in ("spawn", "forkserver"):
            max_s += INTERPRETERS_S
        request = {"lock_wait_s": self.lock_wait_s, **request, "workload": self.ref.to_json()}
        child = self._kept_for(request)
        if child is not None and not child.again(request, max_s, guard):
            child.end()
            child = None
        if child is not None:
            failure = yield from self._until_failure(child)
            # what a process can make only once cannot fail a setting: a fresh one tries again
            if failure is None:
                return
            if (failure["failure_kind"], failure["failure_phase"]) not in _MADE_AGAIN:
                yield self._without_doubt(request, failure, guard)
                return
        child = self._fork(request, max_s, guard)
        if child is None:
            lost = failure_event("trainer-killed", "setup", f"the trial's template process was killed{self._tail()}")
            self.close()
            yield lost
            return
        failure = yield from self._until_failure(child)
        if failure is not None:
            yield self._without_doubt(request, failure, guard)

    def _until_failure(self, child: Child) -> Generator[dict[str, Any], None, dict[str, Any] | None]:
        """Yield a child's events, end it or keep it, and return its failure, which is not yielded."""
        try:
            for event in child.events():
                if event["event"] == "failure":
                    return event
                yield event
        finally:
            child.stop()
            if child.kept:
                self._kept = child
            else:
                child.end()
        return None

    def _without_doubt(self, request: dict[str, Any], failure: dict[str, Any], guard: MemoryGuard) -> dict[str, Any]:
        """The failure with its whole sentence: what the trial could not know, a fresh child finds out without workers."""
        asked = failure.pop("doubt", None)
        if asked is None:
            return failure
        doubt = Doubt(**asked)
        os.ftruncate(self._log.fileno(), 0)
        child = self._fork({**request, "op": "rerun", "doubt": asked, "keep": False}, 0.0, guard)
        if child is None:
            return failure
        doing, again, until = "", Rerun("slow"), math.inf
        try:
            for event in child.events():
                if event["event"] == "phase" and event["phase"] == "rerun":
                    until = time.monotonic() + RERUN_S
                doing = event.get("doing", doing)
                if event["event"] == "rerun":
                    again = Rerun(event["outcome"], event["doing"], event["error"], event["reportable"])
                elif event["event"] == "failure":
                    again = _failed_again(event, doing)
                if time.monotonic() > until:
                    break
        finally:
            child.end()
        return {**failure, **resolve(Failure.from_columns(failure), doubt, again).columns()}

    def _fork(self, request: dict[str, Any], max_s: float, guard: MemoryGuard) -> Child | None:
        """A fresh child; None when the template has died."""
        self._end_kept()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [json.dumps(request).encode() + b"\n"], [theirs.fileno()])
            except OSError:
                ours.close()
                return None
        return Child(self, ours, request, max_s, guard)

    def _kept_for(self, request: dict[str, Any]) -> Child | None:
        """The child that was kept, where it has what this request needs."""
        child, self._kept = self._kept, None
        if child is None:
            return None
        if request.get("keep") and needs(child.request) == needs(request):
            return child
        child.end()
        return None

    def _end_kept(self) -> None:
        child, self._kept = self._kept, None
        if child is not None:
            child.end()

    def close(self) -> None:
        """End the template and every process that came from it."""
        self._end_kept()
        if self._process is None:
            return
        self._control.close()  # at which the template ends its children, runs its exit functions and ends
        try:
            self._process.wait(2 * EXIT_S)
        except subprocess.TimeoutExpired:
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
                # -P: a folder named feedrate where the user works, perhaps a clone of ours, is not imported instead
                [sys.executable, "-P", "-m", "feedrate.trainables.template", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=2 if output is None else output,  # a notebook's sys.stderr has no descriptor
                stderr=output,
                cwd=self.ref.cwd if self.ref.cwd and os.path.isdir(self.ref.cwd) else None,
                start_new_session=True,  # Ctrl-C in the terminal is for the driver alone
            )
        self._temp = os.path.join(tempfile.gettempdir(), f"feedrate-{self._marker[:12]}")
        self._control.sendall(json.dumps(self._hello | {"temp": self._temp}).encode() + b"\n")
        self._messages = b""
        ready = self._message(time.monotonic() + SETUP_TIMEOUT_S)
        self._spare, self.clean = {os.getpid(), *ready["spare"]}, ready["clean"]

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
            return failure_event("hang", "setup", message + self._tail(), stacks.text_of(found))
        if isinstance(error, EOFError) and self._process is not None:
            message = how_ended(self._process.wait(), "while the workload's module was imported")
            return failure_event("trainer-killed", "setup", message + self._tail())
        return failure_event("internal", "setup", f"the trial's template process did not start: {error}{self._tail()}")

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


def _failed_again(event: dict[str, Any], doing: str) -> Rerun:
    """What became of a rerun that ended without a word of its own."""
    if event["failure_phase"] != "rerun":
        return Rerun("unmade", error=event["failure_message"])
    if event["failure_kind"] == "hang":
        return Rerun("hangs", doing)
    how = re.search(r"SIG\w+|exit status \d+", event["failure_message"])
    return Rerun("died", doing, how[0] if how else event["failure_message"])


def needs(request: dict[str, Any]) -> tuple[Any, ...]:
    """What a child must have been asked for to serve this request too: the same training step."""
    config, options = request.get("config", {}), request.get("options", {})
    placed = (config.get("sharing_strategy"), config.get("trainer_cpus"))
    step = [options.get(name) for name in ("amp", "compile", "device", "loader_only", "cold")]
    return (request["op"], request["workload"], config.get("batch_size"), placed, step)
