"""The supervisor's side of a template process: it runs each request in a child of the template and leaves no process behind.

The Ray actor uses it, and the commands that need no Ray. Whichever process dies first, the others end too: the template watches
its socket, the child dies with the template, and processes that escaped are found by the marker in their environment.
"""

from __future__ import annotations

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
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from feedrate.trainables.diagnose import stacks
from feedrate.trainables.diagnose.hang_message import INTERPRETERS_S
from feedrate.trainables.diagnose.reloaded import Reloaded
from feedrate.trainables.diagnose.settling import settle
from feedrate.trainables.doubt import Doubt
from feedrate.trainables.failure import Failure
from feedrate.trainables.isolation.leaving import EXIT_S
from feedrate.trainables.isolation.sweeping import MARKER, marked, sweep
from feedrate.trainables.machine.host_lock import OTHERS_WAIT_S
from feedrate.trainables.machine.memory_guard import MemoryGuard
from feedrate.trainables.resolve import WorkloadRef
from feedrate.trainables.sandbox.channel import Channel
from feedrate.trainables.sandbox.child import Child, failure_event, how_ended
from feedrate.trainables.sandbox.hang_detector import SETUP_TIMEOUT_S

RERUN_S = 20.0
"""Time for loading failed batches again, counted from when their dataset has been made."""
_MADE_AGAIN = (("user-code", "setup"), ("user-code", "loader"))
"""Kind and phase of failures that count only in a fresh child: a kept child makes its loader a second time, which may itself fail."""


class Template:
    """A template process for one workload. It starts on first use, and again after it died.

    Args:
        ref: the workload.
        cpus: CPUs on which the trials may run; None leaves the affinity as it is.
        threads: torch's intra-op threads; None leaves torch's own choice.
        environment: variables to set for trials, or to remove if the value is None.
        show_output: whether the workload's output goes to our stderr; otherwise failures quote its last lines.
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
        self._temp: str | None = None
        self._kept: Child | None = None
        self.lock_wait_s = OTHERS_WAIT_S
        """How long trials wait if another user holds the host's lock."""

    def run(self, request: dict[str, Any], *, max_s: float = SETUP_TIMEOUT_S) -> Iterator[dict[str, Any]]:
        """Run one request in a child and yield its events (see child_main.py); the last event always ends the request.

        The child is fresh, unless this request and the previous one have "keep" set and need the same training step, and making
        the step took long.

        Closing the generator ends the child and everything it started. If a child dies, hangs, or ends the template with itself,
        the last event is a failure too.

        Args:
            request: {"op": "measure" | "describe", ...}; `run` adds the workload.
            max_s: how long the timed part may be silent.
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
        self._channel.begin_request()
        if request.get("config", {}).get("multiprocessing_context") in ("spawn", "forkserver"):
            max_s += INTERPRETERS_S
        request = {"lock_wait_s": self.lock_wait_s, **request, "workload": self.ref.to_json()}
        child = self._kept_for(request)
        if child is not None and not child.again(request, max_s, guard):
            self._end(child)
            child = None
        if child is not None:
            failure = yield from self._until_failure(child)
            # if user code can do something only once per process, the setting is not to blame: a fresh child tries again
            if failure is None:
                return
            if (failure["failure_kind"], failure["failure_phase"]) not in _MADE_AGAIN:
                yield self._without_doubt(request, failure, guard)
                return
        child = self._fork(request, max_s, guard)
        if child is None:
            lost = failure_event("trainer-killed", "setup", f"the trial's template process was killed{self._channel.tail()}")
            self.close()
            yield lost
            return
        failure = yield from self._until_failure(child)
        if failure is not None:
            yield self._without_doubt(request, failure, guard)

    def _until_failure(self, child: Child) -> Generator[dict[str, Any], None, dict[str, Any] | None]:
        """Yield a child's events, then end or keep the child. Return its failure instead of yielding it."""
        try:
            for event in child.events():
                if event["event"] == "failure":
                    return event
                if event.get("without_lock"):
                    self.lock_wait_s = 0.0  # so that the next trial does not wait for the same user again
                yield event
        finally:
            child.stop()
            if child.kept:
                self._kept = child
            else:
                self._end(child)
        return None

    def _without_doubt(self, request: dict[str, Any], failure: dict[str, Any], guard: MemoryGuard) -> dict[str, Any]:
        """Complete the failure's message: a fresh child loads the batch without workers to find out what the trial could not know."""
        asked = failure.pop("doubt", None)
        if asked is None or self._process is None:  # the template died with the trial
            return failure
        doubt = Doubt(**asked)
        self._channel.begin_request()
        child = self._fork({**request, "op": "rerun", "doubt": asked, "keep": False}, 0.0, guard)
        if child is None:
            return failure
        doing, again, until = "", Reloaded("slow"), math.inf
        try:
            for event in child.events():
                if event["event"] == "phase" and event["phase"] == "rerun":
                    until = time.monotonic() + RERUN_S
                doing = event.get("doing", doing)
                if event["event"] == "rerun":
                    again = Reloaded(event["outcome"], event["doing"], event["error"], event["reportable"])
                elif event["event"] == "failure":
                    again = _failed_again(event, doing)
                if time.monotonic() > until:
                    break
        finally:
            self._end(child)
        return {**failure, **settle(Failure.from_columns(failure), doubt, again).columns()}

    def _fork(self, request: dict[str, Any], max_s: float, guard: MemoryGuard) -> Child | None:
        """Start a fresh child; return None if the template has died."""
        self._end_kept()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._channel.control, [json.dumps(request).encode() + b"\n"], [theirs.fileno()])
            except OSError:
                ours.close()
                return None
        return Child(self._channel, ours, request, max_s, guard)

    def _kept_for(self, request: dict[str, Any]) -> Child | None:
        """Return the kept child if it has what this request needs; otherwise end it."""
        child, self._kept = self._kept, None
        if child is None:
            return None
        if request.get("keep") and needs(child.request) == needs(request):
            return child
        self._end(child)
        return None

    def _end(self, child: Child) -> None:
        if not child.end():
            self.close()

    def _end_kept(self) -> None:
        child, self._kept = self._kept, None
        if child is not None:
            self._end(child)

    def close(self) -> None:
        """End the template and every process that came from it."""
        self._end_kept()
        if self._process is None:
            return
        self._channel.control.close()  # the template then ends its children, runs its exit functions and ends
        try:
            self._process.wait(2 * EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        sweep(self._channel.marker, spare={os.getpid()})
        self._process = None
        self._channel.close()
        if self._temp is not None:
            shutil.rmtree(self._temp, ignore_errors=True)
            self._temp = None

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._channel = channel = Channel(show_output=self._show_output)
        # whoever has Ray's token can use the cluster, and user code does not need it
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
        for key, value in self._environment.items():
            environment.pop(key, None)
            if value is not None:
                environment[key] = value
        environment[MARKER] = channel.marker
        environment[stacks.VARIABLE] = channel.stacks_path
        output = None if self._show_output else channel.log
        with channel.theirs as theirs:
            self._process = subprocess.Popen(
                # -P: Python must not import a folder named feedrate in the user's working directory, such as a clone of the project
                [sys.executable, "-P", "-m", "feedrate.trainables.sandbox.template_main", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=2 if output is None else output,  # a notebook's sys.stderr has no descriptor
                stderr=output,
                cwd=self.ref.cwd if self.ref.cwd and os.path.isdir(self.ref.cwd) else None,
                start_new_session=True,  # so that Ctrl-C in the terminal reaches only the driver
            )
        self._temp = os.path.join(tempfile.gettempdir(), f"feedrate-{channel.marker[:12]}")
        channel.control.sendall(json.dumps(self._hello | {"temp": self._temp}).encode() + b"\n")
        ready = channel.message(time.monotonic() + SETUP_TIMEOUT_S)
        channel.spare, self.clean = {os.getpid(), *ready["spare"]}, ready["clean"]

    def _not_started(self, error: Exception) -> dict[str, Any]:
        """Return the failure of a template that did not start. Starting it imports torch and the workload's module."""
        if isinstance(error, TimeoutError):
            message = f"importing the workload's module took more than {SETUP_TIMEOUT_S:.0f} s"
            pid = self._process.pid if self._process is not None else 0
            found = stacks.read(marked(self._channel.marker), trainer=pid, path=self._channel.stacks_path)
            place = next((stack.place() for stack in found if stack.pid == pid), None)
            message += f": it hangs in {place}" if place is not None else ""
            return failure_event("hang", "setup", message + self._channel.tail(), stacks.text_of(found))
        if isinstance(error, EOFError) and self._process is not None:
            message = how_ended(self._process.wait(), "while the workload's module was imported")
            return failure_event("trainer-killed", "setup", message + self._channel.tail())
        return failure_event("internal", "setup", f"the trial's template process did not start: {error}{self._channel.tail()}")


def _failed_again(event: dict[str, Any], doing: str) -> Reloaded:
    """Return the outcome of a rerun whose process ended without reporting one."""
    if event["failure_phase"] != "rerun":
        return Reloaded("unmade", error=event["failure_message"])
    if event["failure_kind"] == "hang":
        return Reloaded("hangs", doing)
    how = re.search(r"SIG\w+|exit status \d+", event["failure_message"])
    return Reloaded("died", doing, how[0] if how else event["failure_message"])


def needs(request: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a child must have in common with this request to serve it: everything on which the training step depends."""
    config, options = request.get("config", {}), request.get("options", {})
    placed = (config.get("sharing_strategy"), config.get("trainer_cpus"))
    step = [options.get(name) for name in ("amp", "compile", "device", "loader_only", "cold")]
    return (request["op"], request["workload"], config.get("batch_size"), placed, step)
