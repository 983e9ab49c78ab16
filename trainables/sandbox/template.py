"""The supervisor's side of a template process: it runs each request in a child of the template and leaves no process behind.

The Ray actor uses it, and the commands that need no Ray. Whichever process dies first, the others end too: the template watches
its socket, the child dies with the template, and processes that escaped are found by the marker in their environment.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace

from feedrate.trainables.diagnose import stacks
from feedrate.trainables.diagnose.hang_message import INTERPRETERS_S
from feedrate.trainables.diagnose.ranks_hang import rank_that_is_waited_for, ranks_of
from feedrate.trainables.diagnose.reloaded import Reloaded
from feedrate.trainables.diagnose.settling import settle
from feedrate.trainables.failure import Failure
from feedrate.trainables.isolation.leaving import EXIT_S
from feedrate.trainables.isolation.sweeping import MARKER, marked, sweep
from feedrate.trainables.machine.host_lock import OTHERS_WAIT_S
from feedrate.trainables.machine.memory_guard import MemoryGuard
from feedrate.trainables.protocol import (
    ChildTask,
    Event,
    Events,
    Failed,
    LoadedAgain,
    LoadingAgain,
    MeasureRequest,
    News,
    Phase,
    Request,
    RerunRequest,
    Waiting,
    read,
)
from feedrate.trainables.resolve import WorkloadRef
from feedrate.trainables.sandbox.channel import Channel
from feedrate.trainables.sandbox.child import Child, failed, how_ended
from feedrate.trainables.sandbox.hang_detector import SETUP_TIMEOUT_S
from feedrate.trainables.sandbox.other_hosts import OtherHosts
from feedrate.trainables.sandbox.template_protocol import Hello, Ready

RERUN_S = 20.0
"""Time for loading failed batches again, counted from when their dataset has been made."""
LONGEST_FOLDER = 70
"""Longest path of the folder for temporary files: the kernel allows 107 bytes for the path of a socket."""
_MADE_AGAIN = (("user-code", "setup"), ("user-code", "loader"), ("script-ended", "measure"))
"""Kind and phase of failures that count only in a fresh child: a kept child makes its loader a second time, which may itself fail, and
a training script has had its last batch some time."""


class Template:
    """A template process for one workload. It starts on first use, and again after it died.

    Args:
        ref: the workload.
        cpus: CPUs on which the trials may run; None leaves the affinity as it is.
        threads: torch's intra-op threads; None leaves torch's own choice.
        environment: variables to set for trials, or to remove if the value is None.
        show_output: whether the workload's output goes to our stderr; otherwise failures quote its last lines.
        log_path: file to which that output is appended; None keeps only that of the present request, for failures.
        num_hosts: on how many hosts, this one included, the training command is started at once for ranks that train together.
        other_hosts: the others of them; None if there are none.
    """

    def __init__(
        self,
        ref: WorkloadRef,
        *,
        cpus: set[int] | None = None,
        threads: int | None = None,
        environment: Mapping[str, str | None] | None = None,
        show_output: bool = False,
        log_path: str | None = None,
        num_hosts: int = 1,
        other_hosts: OtherHosts | None = None,
    ) -> None:
        self.ref, self._num_hosts, self._other_hosts = ref, num_hosts, other_hosts
        self._cpus, self._threads = sorted(cpus) if cpus else None, threads
        self._environment = dict(environment or {})
        self._show_output, self._log_path = show_output, log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._temp: str | None = None
        self._kept: Child | None = None
        self.lock_wait_s = OTHERS_WAIT_S
        """How long trials wait if another user holds the host's lock."""

    def run(self, request: Request, *, max_s: float = SETUP_TIMEOUT_S) -> Events:
        """Run one request in a child and yield its events (see protocol.py); the last event always ends the request.

        The child is fresh, unless this request and the previous one have `keep` set and need the same training step, and making
        the step took long. The process of a training command serves further requests whenever that is safe.

        Closing the generator ends the child and everything it started. If a child dies, hangs, or ends the template with itself,
        the last event is a failure too.

        Args:
            request: what the child does with the workload.
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
            yield failed("internal", "setup", str(error))
            return
        self._channel.begin_request()
        task = ChildTask(request=request, workload=self.ref, lock_wait_s=self.lock_wait_s)
        if task.config is not None and task.config.multiprocessing_context in ("spawn", "forkserver"):
            max_s += INTERPRETERS_S
        child = self._kept_for(task)
        if child is not None and not (self._serves_elsewhere() and child.again(task, max_s, guard)):
            self._end(child)
            child = None
        if child is not None:
            failure = yield from self._until_failure(child)
            # if user code can do something only once per process, the setting is not to blame: a fresh child tries again
            if failure is None:
                return
            if (failure.failure.kind, failure.failure.phase) not in _MADE_AGAIN:
                yield self._without_doubt(task, failure, guard)
                return
        child = self._fork(task, max_s, guard)
        if child is None:
            lost = failed("trainer-killed", "setup", f"the trial's template process was killed{self._channel.tail()}")
            self.close()
            yield lost
            return
        failure = yield from self._until_failure(child)
        if failure is not None:
            yield self._without_doubt(task, failure, guard)

    def waited_for(self) -> str | None:
        """Return which rank of this host hangs while others wait for it, as the beginning of a sentence; None if none does.

        Another thread may call it while `run` waits for the next event.
        """
        pids = self._channel.pids()
        ranks = ranks_of(pids)
        found = stacks.read(pids, trainer=min(ranks.values(), default=0), path=self._channel.stacks_path)
        return rank_that_is_waited_for(found, ranks, "measure")

    def _serves_elsewhere(self) -> bool:
        """Return whether the other hosts, if there are any, can serve a further request: a rank may have failed there after the last one."""
        try:
            return self._other_hosts is None or self._other_hosts.failure() is None
        except Exception:  # a host was lost, which the next start shows
            return False

    def _until_failure(self, child: Child) -> Generator[Event, None, Failed | None]:
        """Yield a child's events, then end or keep the child. Return its failure instead of yielding it."""
        try:
            for event in child.events():
                if isinstance(event, Failed):
                    return event
                if isinstance(event, Waiting) and event.without_lock:
                    self.lock_wait_s = 0.0  # so that the next trial does not wait for the same user again
                yield event
        finally:
            child.stop()
            if child.kept:
                self._kept = child
            else:
                self._end(child)
        return None

    def _without_doubt(self, task: ChildTask, failure: Failed, guard: MemoryGuard) -> Failed:
        """Complete the failure's message: a fresh child loads the batch without workers to find out what the trial could not know."""
        doubt, failure = failure.doubt, replace(failure, doubt=None)
        if doubt is None or task.trial is None or self._process is None:  # the template died with the trial
            return failure
        self._channel.begin_request()
        child = self._fork(replace(task, request=RerunRequest(doubt=doubt, failed=task.trial)), 0.0, guard)
        if child is None:
            return failure
        doing, until = "", math.inf

        def is_late(news: News) -> bool:
            nonlocal doing, until
            if isinstance(news, Phase) and news.name == "rerun":
                until = time.monotonic() + RERUN_S
            if isinstance(news, LoadingAgain):
                doing = news.doing
            return time.monotonic() > until

        try:
            event = read(child.events(), is_late)
        except Exception:
            if self._other_hosts is None:
                raise
            return failure  # a host was lost meanwhile, and this failure is known
        finally:
            self._end(child)
        again = Reloaded("slow")
        if isinstance(event, LoadedAgain):
            again = event.again
        elif isinstance(event, Failed):
            again = _failed_again(event.failure, doing)
        return replace(failure, failure=settle(failure.failure, doubt, again))

    def _fork(self, task: ChildTask, max_s: float, guard: MemoryGuard) -> Child | None:
        """Start a fresh child; return None if the template has died."""
        self._end_kept()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._channel.control, [task.line()], [theirs.fileno()])
            except OSError:
                ours.close()
                return None
        if self._other_hosts is not None:
            self._other_hosts.begin()
        return Child(self._channel, ours, task, max_s, guard, self._other_hosts)

    def _kept_for(self, task: ChildTask) -> Child | None:
        """Return the kept child if it has what this request needs; otherwise end it."""
        child, self._kept = self._kept, None
        if child is None:
            return None
        if task.keep and needs(child.task) == needs(task):
            return child
        self._end(child)
        return None

    def _end(self, child: Child) -> None:
        has_ended = child.end()
        if self._other_hosts is not None:
            self._other_hosts.end()
        if not has_ended:
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
        self._channel = channel = Channel(show_output=self._show_output, log_path=self._log_path)
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
        self._temp = os.path.join(_short_folder() if self.ref.command else tempfile.gettempdir(), f"feedrate-{channel.marker[:12]}")
        channel.control.sendall(Hello(workload=self.ref, cpus=self._cpus, threads=self._threads, temp=self._temp, num_hosts=self._num_hosts).line())
        ready = channel.answer(time.monotonic() + SETUP_TIMEOUT_S)
        assert isinstance(ready, Ready)  # it is the first answer
        channel.spare, self.clean = {os.getpid(), *ready.spare}, ready.clean

    def _not_started(self, error: Exception) -> Failed:
        """Return the failure of a template that did not start. Starting it imports torch and the workload's module."""
        if isinstance(error, TimeoutError):
            message = f"importing the workload's module took more than {SETUP_TIMEOUT_S:.0f} s"
            pid = self._process.pid if self._process is not None else 0
            found = stacks.read(marked(self._channel.marker), trainer=pid, path=self._channel.stacks_path)
            place = next((stack.place() for stack in found if stack.pid == pid), None)
            message += f": it hangs in {place}" if place is not None else ""
            return failed("hang", "setup", message + self._channel.tail(), stacks.text_of(found))
        if isinstance(error, EOFError) and self._process is not None:
            message = how_ended(self._process.wait(), "while the workload's module was imported")
            return failed("trainer-killed", "setup", message + self._channel.tail())
        return failed("internal", "setup", f"the trial's template process did not start: {error}{self._channel.tail()}")


def _short_folder() -> str:
    """Return the folder for temporary files, or /tmp if that is so long that a socket in it could not be named."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= LONGEST_FOLDER else "/tmp"


def _failed_again(failure: Failure, doing: str) -> Reloaded:
    """Return the outcome of a rerun whose process ended without reporting one."""
    if failure.phase != "rerun":
        return Reloaded("unmade", error=failure.message)
    if failure.kind == "hang":
        return Reloaded("hangs", doing)
    how = re.search(r"SIG\w+|exit status \d+", failure.message)
    return Reloaded("died", doing, how[0] if how else failure.message)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a child must have in common with a request to serve it: everything on which the training step depends."""

    workload: WorkloadRef
    batch_size: int | None = None
    sharing_strategy: str | None = None
    trainer_cpus: int | None = None
    device: str | None = None
    amp: str | None = None
    compile: bool = False
    loader_only: bool = False
    cold: bool = False


def needs(task: ChildTask) -> Needs | None:
    """Return what a child must have in common with this request to serve it; None if every such request needs a fresh child."""
    is_script = task.workload.command is not None  # its own loop is the step, whatever the batch size
    if not isinstance(task.request, MeasureRequest):
        return Needs(task.workload) if is_script else None
    config, options = task.request.config, task.request.options
    if is_script:
        return Needs(
            task.workload,
            sharing_strategy=config.sharing_strategy,
            trainer_cpus=config.trainer_cpus,
            device=options.device,
            cold=options.cold,
        )
    return Needs(
        workload=task.workload,
        batch_size=config.batch_size,
        sharing_strategy=config.sharing_strategy,
        trainer_cpus=config.trainer_cpus,
        device=options.device,
        amp=options.amp,
        compile=options.compile,
        loader_only=options.loader_only,
        cold=options.cold,
    )
